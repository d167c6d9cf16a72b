"""Each rule of the history checker finds what it is there to find: a sound history passes, and each way of breaking it is named."""

import copy
import unittest

from history import Bounds, History, merge

S, T = "session-1", "session-2"


def entry(index, action, session, version, event, time=None):
    return {"index": index, "leaf_hash": f"hash{index}", "time": 1000.0 + index if time is None else time, "action": action, "session": session,
            "version": version, "event": event}


def operation(op, start, end, status, **fields):
    blank = dict(client=0, node="node1", session=S, subject="ann", code=None, retry_after=False, min_index=None, if_match=None, key=None, value=None,
                 token_version=None, idempotency=None, version=None, state=None, active=None, reason=None, attributes=None, index=None, leaf_hash=None,
                 receipts=None)
    return {**blank, "op": op, "start": start, "end": end, "status": status, **fields}


def acknowledged(op, start, index, version, **fields):
    return operation(op, start, start + 0.1, 201 if op == "create" else 200, index=index, leaf_hash=f"hash{index}", version=version, **fields)


def read(start, version, attributes, *, active=True, **fields):
    fields = {"state": "active" if active else "ended", **fields}
    return operation("get", start, start + 0.01, 200, version=version, active=active, attributes=attributes,
                     reason=None if active else "ended", **fields)


def created(index, session, subject, attributes):
    return entry(index, "session.created", session, 1, {"created": {"subject": subject, "attributes": attributes}})


def sound():
    """Two sessions of one subject: made, changed, renewed, read, one ended, the other logged out."""
    log = [
        entry(0, "service.started", None, None, None), created(1, S, "ann", {"made": "a1"}), created(2, T, "ann", {"made": "a2"}),
        entry(3, "session.updated", S, 2, {"updated": {"patch": {"c0": "v1"}}}), entry(4, "session.renewed", S, 3, {"renewed": {}}),
        entry(5, "session.ended", S, 4, {"ended": {"reason": "logout"}}), entry(6, "session.ended", T, 2, {"ended": {"reason": "logout"}}),
    ]
    state = {"made": "a1", "c0": "v1"}
    operations = [
        acknowledged("create", 0, 1, 1, value="a1", idempotency="k1"), acknowledged("create", 1, 2, 1, session=T, value="a2"),
        read(1.5, 1, {"made": "a1"}),
        acknowledged("update", 2, 3, 2, key="c0", value="v1", if_match=1),
        operation("update", 2.5, 2.6, 412, code="version_conflict", key="c0", value="v2", if_match=1),
        read(2.7, 1, {"made": "a1"}, node="node2"),
        read(2.8, 2, state, node="node2", min_index=3),
        acknowledged("renew", 3, 4, 3),
        operation("validate", 3.5, 3.6, 200, version=3, active=True, attributes=state, state="active", token_version=3, min_index=4),
        operation("create", 3.7, 3.8, 409, code="limit_reached", value="a3"),
        operation("get", 3.9, 4.0, 503, code="not_caught_up", retry_after=True),
        acknowledged("end", 8, 5, 4),
        acknowledged("end", 9, 5, 4),
        read(9.05, 3, state),
        read(12, 4, state, active=False),
        operation("validate", 12.1, 12.2, 200, active=False, reason="ended", token_version=3),
        operation("logout", 13, 13.1, 200, session=None, receipts=[[6, "hash6"]]),
        operation("validate", 13.2, 13.3, 200, session=T, active=False, reason="ended", token_version=1, min_index=6),
    ]
    final = {node: {S: [4, "ended", state], T: [2, "ended", {"made": "a2"}]} for node in ("node1", "node2")}
    return {"operations": operations, "log": log, "weather": [[3.65, 4.5]], "final": final, "expected_nodes": ("node1", "node2")}


class Small(Bounds):
    cap = 2
    recovery = 1.0


def judge(history):
    return History(history.pop("operations"), history.pop("log"), bounds=Small, **history).judge()


class Rules(unittest.TestCase):
    def broken(self, rule, change):
        history = copy.deepcopy(sound())
        change(history, history["operations"], history["log"])
        found = judge(history)
        self.assertIn(rule, {violation["rule"] for violation in found}, found)

    def fine(self, change):
        history = copy.deepcopy(sound())
        change(history, history["operations"], history["log"])
        self.assertEqual(judge(history), [])

    def test_a_sound_history_passes_and_every_rule_looked_at_something(self):
        self.fine(lambda history, ops, log: None)
        history = sound()
        judged = History(history.pop("operations"), history.pop("log"), bounds=Small, **history)
        judged.judge()
        rules = ("versions", "nothing_lost", "refused_not_recorded", "one_winner", "if_match", "min_index", "staleness", "true_reads",
                 "inactive_for_a_reason", "ends_for_a_reason", "logouts_are_whole", "cap_held", "refused_for_a_reason", "done_once",
                 "documented_answers", "in_time", "fair_weather", "agreement")
        self.assertEqual([rule for rule in rules if not judged.counts[rule]], [])

    def test_gapless(self):
        self.broken("gapless", lambda h, ops, log: log.pop(0))

    def test_versions(self):
        self.broken("versions", lambda h, ops, log: log[4].update(version=4))
        self.broken("versions", lambda h, ops, log: log[4].update(version=2))

    def test_final_end(self):
        self.broken("final_end", lambda h, ops, log: log.append(entry(7, "session.updated", S, 5, {"updated": {"patch": {"x": 1}}})))

    def test_nothing_lost(self):
        self.broken("nothing_lost", lambda h, ops, log: ops[3].update(index=99))
        self.broken("nothing_lost", lambda h, ops, log: log[3].update(leaf_hash="other"))
        self.broken("nothing_lost", lambda h, ops, log: log[3]["event"].update(updated={"patch": {"c0": "other"}}))
        self.broken("nothing_lost", lambda h, ops, log: ops[3].update(version=3))
        self.broken("nothing_lost", lambda h, ops, log: ops[-2].update(receipts=[[5, "other"]]))
        self.broken("nothing_lost", lambda h, ops, log: ops[-2].update(subject="bob"))
        self.broken("nothing_lost", lambda h, ops, log: log.pop())

    def test_refused_not_recorded(self):
        self.broken("refused_not_recorded", lambda h, ops, log: ops[4].update(value="v1"))
        self.broken("refused_not_recorded", lambda h, ops, log: ops.append(
            operation("update", 3.7, 3.8, 503, code="log_unavailable", retry_after=True, key="c0", value="v1")))
        self.fine(lambda h, ops, log: ops.append(
            operation("update", 3.7, 3.8, 503, code="outcome_unknown", retry_after=True, key="c0", value="v1")))

    def test_one_winner(self):
        self.broken("one_winner", lambda h, ops, log: ops.append(acknowledged("update", 2.2, 3, 2, key="c0", value="v1")))

    def test_if_match(self):
        self.broken("if_match", lambda h, ops, log: ops[3].update(if_match=0))
        self.broken("if_match", lambda h, ops, log: ops[4].update(if_match=4))

    def test_min_index(self):
        self.broken("min_index", lambda h, ops, log: ops[5].update(min_index=3))
        self.broken("min_index", lambda h, ops, log: ops[13].update(min_index=5))
        self.broken("min_index", lambda h, ops, log: ops[8].update(active=False, reason="unknown", attributes=None, version=None))
        self.broken("min_index", lambda h, ops, log: ops[6].update(status=404, code="not_found", version=None, attributes=None, active=None))

    def test_staleness(self):
        self.broken("staleness", lambda h, ops, log: ops[13].update(start=11, end=11.1))
        self.broken("staleness", lambda h, ops, log: ops[5].update(start=4.7, end=4.8))
        self.broken("staleness", lambda h, ops, log: ops.append(read(16, 1, {"made": "a2"}, session=T)))

    def test_a_replaced_token_of_an_ended_session_may_be_forgotten_and_no_other(self):
        late = operation("validate", 12.3, 12.4, 200, active=False, reason="unknown", token_version=1, min_index=4)
        self.fine(lambda h, ops, log: ops.append(late))
        self.broken("min_index", lambda h, ops, log: ops.append({**late, "token_version": 3}))

    def test_true_reads(self):
        self.broken("true_reads", lambda h, ops, log: ops[2].update(attributes={"made": "other"}))
        self.broken("true_reads", lambda h, ops, log: ops[2].update(version=9))
        self.broken("true_reads", lambda h, ops, log: ops[14].update(version=3))

    def test_inactive_for_a_reason(self):
        early = dict(status=200, active=False, attributes=None, version=None, token_version=1)
        for reason in ("ended", "expired_idle", "rotated", "unknown"):
            self.broken("inactive_for_a_reason", lambda h, ops, log, reason=reason: ops.append(
                operation("validate", 7, 7.1, session=T, reason=reason, **early)))
        self.broken("inactive_for_a_reason", lambda h, ops, log: ops.append(operation("get", 7, 7.1, 404, code="not_found", session=T)))
        self.broken("inactive_for_a_reason", lambda h, ops, log: ops.append(operation("touch", 7, 7.1, 409, code="session_ended", session=T)))
        self.fine(lambda h, ops, log: ops.append(operation("validate", 1.2, 1.3, session=T, reason="unknown", **early)))

    def test_ends_for_a_reason(self):
        self.broken("ends_for_a_reason", lambda h, ops, log: log.extend(
            [created(7, "session-3", "bob", {}), entry(8, "session.ended", "session-3", 2, {"ended": {"reason": "expired_idle"}})]))

    def test_an_expiry_that_was_due_is_one(self):
        log = [created(7, "session-3", "bob", {}), entry(8, "session.ended", "session-3", 2, {"ended": {"reason": "expired_idle"}}, time=3000.0)]
        history = copy.deepcopy(sound())
        history["log"] += log
        for held in history["final"].values():
            held["session-3"] = [2, "ended", {}]
        self.assertEqual(judge(history), [])

    def test_logouts_are_whole(self):
        def spared(history, ops, log):
            log.pop()
            ops[-2].update(receipts=[])
            ops.append(operation("end", 20, 20.1, 200, session=T, version=2, index=6, leaf_hash="hash6"))
            log.append(entry(6, "session.ended", T, 2, {"ended": {"reason": "logout"}}))
        self.broken("logouts_are_whole", spared)

    def test_a_session_that_had_ended_before_a_logout_is_not_spared_by_it(self):
        def ended_twice(history, ops, log):
            ops[-2].update(receipts=[])
            ops += [operation("end", start, start + 0.1, 200, session=T, version=2, index=6, leaf_hash="hash6") for start in (11, 20)]
        self.fine(ended_twice)

    def test_a_token_need_not_be_known_before_the_index_of_its_renewal(self):
        early = operation("validate", 3.2, 3.3, 200, active=False, reason="unknown", token_version=3, min_index=3)
        self.fine(lambda h, ops, log: ops.append(early))
        self.broken("min_index", lambda h, ops, log: ops.append({**early, "min_index": 4}))

    def test_cap_held(self):
        self.broken("cap_held", lambda h, ops, log: log.__setitem__(0, created(0, "session-0", "ann", {})))

    def test_refused_for_a_reason(self):
        self.broken("refused_for_a_reason", lambda h, ops, log: ops[9].update(subject="bob"))

    def test_done_once(self):
        self.broken("done_once", lambda h, ops, log: log.append(created(7, "session-3", "bob", {"made": "a1"})))
        self.broken("done_once", lambda h, ops, log: ops.append(acknowledged("create", 0.5, 2, 1, session=T, value="a1", idempotency="k1")))

    def test_documented_answers(self):
        self.broken("documented_answers", lambda h, ops, log: ops[10].update(status=500, code="internal"))
        self.broken("documented_answers", lambda h, ops, log: ops[10].update(retry_after=False))
        self.broken("documented_answers", lambda h, ops, log: ops[10].update(status=0, code="reset"))
        self.fine(lambda h, ops, log: (ops[10].update(status=0, code="reset"), h.update(down=[["node1", 3.8, 3.95]])))

    def test_in_time(self):
        self.broken("in_time", lambda h, ops, log: ops[2].update(end=9.5))
        self.fine(lambda h, ops, log: (ops[2].update(end=9.5), h.update(down=[["node1", 1, 9]])))

    def test_fair_weather(self):
        self.broken("fair_weather", lambda h, ops, log: h.update(weather=[]))

    def test_agreement(self):
        self.broken("agreement", lambda h, ops, log: h["final"]["node2"].pop(S))
        self.broken("agreement", lambda h, ops, log: h["final"]["node2"].update({S: [3, "active", {"made": "a1", "c0": "v1"}]}))
        self.broken("agreement", lambda h, ops, log: h["final"].pop("node2"))


class Patches(unittest.TestCase):
    def test_merge(self):
        self.assertEqual(merge({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": None}, "e": 4}), {"b": {"d": 3}, "e": 4})


if __name__ == "__main__":
    unittest.main()

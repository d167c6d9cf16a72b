"""Judges what clients saw against what the log says.

A history is a list of operations, each a dictionary:
    client, op (create, get, validate, update, touch, renew, end, logout), node, session, subject, start, end (seconds of one monotonic clock),
    status (0: no answer), code (of a problem), retry_after, min_index, if_match, value (what an update or a create wrote, never twice the same),
    key (the attribute it was written to), token_version (validate: the version that made the token), idempotency, and of the answer: version,
    state, active, reason, attributes, index, leaf_hash, receipts (logout: [[index, leaf_hash]]).

The log is a list of entries in order: index, leaf_hash, time (seconds of the wall clock), action, session, version, event.

`judge` knows nothing of how the service works; each rule is a method, and each has a test that breaks it (history_test.py).
"""

import bisect
import collections

CHANGES = ("create", "update", "renew", "end")
READS = ("get", "validate")

# What openapi/counterfoil.json documents, less what a correct client never causes (400, 401, 403, 405, 413, 415, 422, 429).
STATUSES = {
    "create": {201, 409, 503}, "get": {200, 404, 503}, "validate": {200, 503}, "update": {200, 404, 409, 412, 503}, "touch": {200, 404, 409, 503},
    "renew": {200, 404, 409, 503}, "end": {200, 404, 503}, "logout": {200, 503},
}
ENTRY_OF = {"create": "session.created", "update": "session.updated", "renew": "session.renewed", "end": "session.ended"}


class Bounds:
    """What the service promises, and how much the measuring may add. Seconds."""

    staleness = 2.0
    staleness_slack = 0.5
    deadline = 5.0
    deadline_slack = 2.0
    idle_timeout = 1_800.0
    cap = 5
    # After a fault has healed, until an answer of 503 counts as one in fair weather.
    recovery = 15.0


def merge(document, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    document = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = merge(document.get(name), value)
    return document


class Session:
    """A session as the log tells it: `versions[n - 1]` is the entry of version n."""

    def __init__(self):
        self.subject, self.versions, self.ended, self.states = None, [], None, []

    def at_index(self, index):
        """The version that stood when the log had this index as its last."""
        return bisect.bisect_right([entry["index"] for entry in self.versions], index)


class History:
    """`down`: [node, begin, end], when a node was stopped, frozen or killed by us. `weather`: [begin, end] of faults. `final`: what each node says
    at the end of every session, by node and id: [version, state, attributes]."""

    def __init__(self, operations, log, *, down=(), weather=(), final=None, bounds=Bounds, expected_nodes=()):
        self.operations = sorted(operations, key=lambda op: op["start"])
        self.log, self.down, self.weather, self.final, self.bounds = log, down, weather, final or {}, bounds
        self.expected_nodes = expected_nodes
        self.by_index = {entry["index"]: entry for entry in log}
        self.sessions, self.found, self.counts = collections.defaultdict(Session), [], collections.Counter()
        self.acknowledged = collections.defaultdict(list)
        for op in self.operations:
            if op["op"] in CHANGES and op["status"] in (200, 201):
                self.acknowledged[op["session"]].append(op)

    def judge(self):
        """Every violation: rule, what, and the operation it shows in."""
        for rule in (self.fold, self.nothing_lost, self.nothing_forged, self.one_winner, self.if_match, self.min_index, self.staleness, self.true_reads,
                     self.inactive_for_a_reason, self.ends_for_a_reason, self.logouts_are_whole, self.cap_held, self.refused_for_a_reason,
                     self.done_once, self.documented_answers, self.in_time, self.fair_weather, self.agreement):
            rule()
        return self.found

    def wrong(self, rule, what, op=None):
        self.found.append({"rule": rule, "what": what, "operation": op})

    def checked(self, rule):
        """How often a rule had something to judge: one that never had is no comfort."""
        self.counts[rule] += 1

    # The log by itself.

    def fold(self):
        """Versions are dense and unique, nothing follows an end, indices have no gap."""
        for place, entry in enumerate(self.log):
            if entry["index"] != place:
                self.wrong("gapless", f"entry {place} of the log has index {entry['index']}")
                break
        for entry in self.log:
            if not entry.get("session") or not entry["action"].startswith("session."):
                continue
            if entry.get("version") is None:
                continue
            self.checked("versions")
            session = self.sessions[entry["session"]]
            if entry["version"] != len(session.versions) + 1:
                self.wrong("versions", f"session {entry['session']} has version {entry['version']} at index {entry['index']} after {len(session.versions)}")
            if session.ended:
                self.wrong("final_end", f"session {entry['session']} goes on at index {entry['index']} after its end at {session.ended['index']}")
            event = entry.get("event") or {}
            held = session.states[-1] if session.states else {}
            if "created" in event:
                session.subject, held = event["created"].get("subject"), event["created"].get("attributes") or {}
            elif "updated" in event:
                held = merge(held, event["updated"]["patch"])
            if entry["action"] == "session.ended":
                session.ended = entry
            session.versions.append(entry)
            session.states.append(held)

    # Changes.

    def nothing_lost(self):
        """Each acknowledged change is in the log, as it was acknowledged."""
        for op in self.operations:
            if op["op"] == "logout" and op["status"] == 200:
                for index, leaf_hash in op["receipts"]:
                    self.checked("nothing_lost")
                    entry = self.by_index.get(index)
                    if not entry or entry["leaf_hash"] != leaf_hash or entry["action"] != "session.ended":
                        self.wrong("nothing_lost", f"the log does not hold the end acknowledged as entry {index}", op)
                    elif self.sessions[entry["session"]].subject != op["subject"]:
                        self.wrong("nothing_lost", f"entry {index} ends a session of somebody else", op)
            if op["op"] not in CHANGES or op["status"] not in (200, 201):
                continue
            self.checked("nothing_lost")
            entry = self.by_index.get(op["index"])
            if not entry or entry["leaf_hash"] != op["leaf_hash"]:
                self.wrong("nothing_lost", f"the log does not hold what was acknowledged as entry {op['index']}", op)
                continue
            said = (ENTRY_OF[op["op"]], op["session"], op["version"])
            if (entry["action"], entry["session"], entry["version"]) != said:
                self.wrong("nothing_lost", f"entry {op['index']} is {entry['action']} of {entry['session']} version {entry['version']}", op)
            elif op["op"] == "update" and (entry.get("event") or {}).get("updated", {}).get("patch") != {op["key"]: op["value"]}:
                self.wrong("nothing_lost", f"entry {op['index']} does not hold the value that was written", op)

    def nothing_forged(self):
        """A change that was refused is not in the log: neither a plain no, nor a 503 that does not say that its outcome is unknown."""
        recorded = {}
        for entry in self.log:
            event = entry.get("event") or {}
            written = event.get("updated", {}).get("patch") or event.get("created", {}).get("attributes") or {}
            for value in written.values():
                recorded.setdefault(str(value), []).append(entry["index"])
        self.recorded = recorded
        for op in self.operations:
            unknown = op["status"] == 0 or op["code"] == "outcome_unknown" or op["status"] in (200, 201)
            if op["op"] not in ("create", "update") or unknown or op.get("idempotency"):
                continue
            self.checked("refused_not_recorded")
            if recorded.get(str(op["value"])):
                self.wrong("refused_not_recorded", f"answered {op['status']} {op['code']}, and yet entry {recorded[str(op['value'])]}", op)

    def one_winner(self):
        """Two changes never get the same version. Ending again is answered with the first end."""
        for changes in self.acknowledged.values():
            winners = {}
            for op in changes:
                self.checked("one_winner")
                first = winners.setdefault(op["version"], op)
                again = op["op"] == first["op"] and op["index"] == first["index"] and (
                    op["op"] == "end" or (op.get("idempotency") and op.get("idempotency") == first.get("idempotency")))
                if first is not op and not again:
                    self.wrong("one_winner", f"version {op['version']} of {op['session']} was given twice", op)

    def if_match(self):
        for op in self.operations:
            if op["op"] != "update" or op.get("if_match") is None:
                continue
            self.checked("if_match")
            if op["status"] == 200 and op["version"] != op["if_match"] + 1:
                self.wrong("if_match", f"If-Match {op['if_match']} gave version {op['version']}", op)
            versions = self.sessions[op["session"]].versions
            if op["status"] == 412 and len(versions) <= op["if_match"]:
                self.wrong("if_match", f"412, but no version after {op['if_match']} was ever made", op)

    # Reads.

    def answered(self, op):
        """What a read showed: (version or None, whether it was active), or nothing if it was no answer to judge."""
        if op["op"] not in READS or op["status"] not in (200, 404):
            return None
        if op["status"] == 404 or op["reason"] in ("unknown", "rotated"):
            return 0, False
        return op["version"], op["active"]

    def behind(self, rule, op, needed, why):
        session = self.sessions[op["session"]]
        version, active = self.answered(op)
        if op["op"] == "validate" and op["reason"] == "rotated" and needed > op["token_version"]:
            return
        # Who need not know the renewal need not know its token.
        if op["op"] == "validate" and op["reason"] == "unknown" and needed < op["token_version"]:
            return
        # Of a session that has ended, a token that was replaced before may be forgotten: it opens nothing either way.
        if op["op"] == "validate" and op["reason"] == "unknown" and session.ended and any(
                entry["action"] == "session.renewed" for entry in session.versions[op["token_version"]:]):
            return
        self.checked(rule)
        ended = session.ended and session.ended["version"] <= needed
        if ended and active:
            self.wrong(rule, f"active, though its end, version {session.ended['version']}, {why}", op)
        elif version is not None and version < needed and not (ended and not active):
            self.wrong(rule, f"version {version}, though {needed} {why}", op)

    def min_index(self):
        """A read that carries an index never shows older state: read your writes, monotonic reads, on any node."""
        for op in self.operations:
            if self.answered(op) and op.get("min_index") is not None and op["session"] in self.sessions:
                needed = self.sessions[op["session"]].at_index(op["min_index"])
                if needed:
                    self.behind("min_index", op, needed, f"stood at index {op['min_index']}, which it must see")

    def staleness(self):
        """Without an index, what was acknowledged longer ago than the bound is seen; above all an end."""
        known = {}
        for session, changes in self.acknowledged.items():
            changes = sorted((op["end"], op["version"]) for op in changes)
            newest, best = [], 0
            for end, version in changes:
                best = max(best, version)
                newest.append((end, best))
            known[session] = newest
        for op in self.operations:
            # Ends by logout are known by their receipts.
            if op["op"] == "logout" and op["status"] == 200:
                for index, _ in op["receipts"]:
                    entry = self.by_index.get(index)
                    if entry and entry["action"] == "session.ended":
                        known.setdefault(entry["session"], []).append((op["end"], entry["version"]))
        for newest in known.values():
            newest.sort()
            best = 0
            for place, (end, version) in enumerate(newest):
                best = max(best, version)
                newest[place] = (end, best)
        bound = self.bounds.staleness + self.bounds.staleness_slack
        for op in self.operations:
            if not self.answered(op) or op["session"] not in known or op["session"] not in self.sessions:
                continue
            newest = known[op["session"]]
            # A node that was frozen by us between receiving and answering tells what it knew.
            place = bisect.bisect_right(newest, (op["start"] - bound, float("inf")))
            if place:
                self.behind("staleness", op, newest[place - 1][1], f"was acknowledged {op['start'] - newest[place - 1][0]:.1f} s before it was asked")

    def true_reads(self):
        """What a read shows of a version is what the log says that version is."""
        for op in self.operations:
            seen = self.answered(op)
            if not seen or not seen[0] or op["attributes"] is None:
                continue
            self.checked("true_reads")
            session = self.sessions[op["session"]]
            if op["version"] > len(session.versions):
                self.wrong("true_reads", f"version {op['version']}, of which the log knows nothing", op)
            elif session.states[op["version"] - 1] != op["attributes"]:
                self.wrong("true_reads", f"attributes {op['attributes']}, but version {op['version']} has {session.states[op['version'] - 1]}", op)
            elif op["active"] == (session.versions[op["version"] - 1]["action"] == "session.ended") and not (op["reason"] or "").startswith("expired"):
                self.wrong("true_reads", f"state {op['state']}, reason {op['reason']} at version {op['version']}", op)

    def newest_time(self):
        return max((entry["time"] for entry in self.log), default=0)

    def may_have_expired(self, session):
        """By the log's own clock, which never goes back: a node whose wall clock is ahead takes it along."""
        return bool(session.versions) and self.newest_time() >= session.versions[0]["time"] + self.bounds.idle_timeout

    def inactive_for_a_reason(self):
        """No session is called inactive that nobody had ended and that had not expired."""
        asked, asked_subject = collections.defaultdict(list), collections.defaultdict(list)
        for op in self.operations:
            if op["op"] == "end":
                asked[op["session"]].append(op["start"])
            if op["op"] == "logout":
                asked_subject[op["subject"]].append(op["start"])
        made = {}
        for op in self.operations:
            if op["op"] in ("create", "renew") and op["status"] in (200, 201):
                made[(op["session"], op["version"])] = op["end"]
        self.asked, self.asked_subject = asked, asked_subject
        bound = self.bounds.staleness + self.bounds.staleness_slack
        for op in self.operations:
            refused = op["status"] == 409 and op["code"] == "session_ended"
            if not refused and not (self.answered(op) and not self.answered(op)[1]):
                continue
            self.checked("inactive_for_a_reason")
            session = self.sessions[op["session"]]
            reason = "ended" if refused else "unknown" if op["status"] == 404 else op["reason"]
            begun = [start for start in asked[op["session"]] + asked_subject[session.subject] if start < op["end"]]
            if reason == "ended":
                if not begun and not self.may_have_expired(session):
                    self.wrong("inactive_for_a_reason", "said to have ended, though nobody had asked for it", op)
            elif reason in ("expired_idle", "expired_absolute"):
                if not self.may_have_expired(session):
                    self.wrong("inactive_for_a_reason", f"said to be {reason}", op)
            elif reason == "rotated":
                renewals = [entry for entry in session.versions[op["token_version"]:] if entry["action"] == "session.renewed"]
                if not renewals and not begun:
                    self.wrong("inactive_for_a_reason", "its token is said to be rotated, but nobody renewed it", op)
            else:
                # A session or a token just made elsewhere may be unknown for as long as reads may be stale.
                since = made.get((op["session"], op.get("token_version") or 1))
                excused = since is None or op["start"] < since + bound or (begun and op["op"] == "validate")
                if not excused and not self.may_have_expired(session):
                    self.wrong("inactive_for_a_reason", f"{reason}, though it was acknowledged {op['start'] - since:.1f} s before it was asked", op)

    def ends_for_a_reason(self):
        """Each end in the log was asked for, or is an expiry that was due."""
        for name, session in self.sessions.items():
            if not session.ended:
                continue
            self.checked("ends_for_a_reason")
            asked = self.asked[name] or self.asked_subject[session.subject]
            if not asked and not self.may_have_expired(session):
                self.wrong("ends_for_a_reason", f"session {name} ends at index {session.ended['index']}: {session.ended.get('event')}")

    def logouts_are_whole(self):
        """After a logout everywhere none of the subject's sessions that were acknowledged before it was asked for is left."""
        by_subject = collections.defaultdict(list)
        for op in self.operations:
            if op["op"] == "create" and op["status"] == 201:
                by_subject[op["subject"]].append(op)
        later = {}
        for op in self.operations:
            # Ending again is answered with the first end: the earliest to hear of it counts.
            if op["op"] == "end" and op["status"] == 200:
                later[op["index"]] = min(op["start"], later.get(op["index"], op["start"]))
        for op in self.operations:
            if op["op"] == "logout" and op["status"] == 200:
                for index, _ in op["receipts"]:
                    later[index] = min(op["start"], later.get(index, op["start"]))
        for op in self.operations:
            if op["op"] != "logout" or op["status"] != 200:
                continue
            for made in by_subject[op["subject"]]:
                if made["end"] >= op["start"]:
                    continue
                self.checked("logouts_are_whole")
                ended = self.sessions[made["session"]].ended
                if not ended or later.get(ended["index"], 0) > op["end"]:
                    self.wrong("logouts_are_whole", f"session {made['session']}, acknowledged {op['start'] - made['end']:.3f} s before, was left", op)

    def cap_held(self):
        """In the log no subject ever has more open sessions than the cap."""
        self.most = collections.Counter()
        open_now, owner = collections.Counter(), {}
        for entry in self.log:
            event = entry.get("event") or {}
            if entry["action"] == "session.created" and event.get("created", {}).get("subject"):
                self.checked("cap_held")
                subject = owner[entry["session"]] = event["created"]["subject"]
                open_now[subject] += 1
                self.most[subject] = max(self.most[subject], open_now[subject])
                if open_now[subject] > self.bounds.cap:
                    self.wrong("cap_held", f"{subject} has {open_now[subject]} open sessions at index {entry['index']}")
            elif entry["action"] == "session.ended" and entry["session"] in owner:
                open_now[owner[entry["session"]]] -= 1

    def refused_for_a_reason(self):
        """A create is refused at the cap only if the subject ever had so many."""
        for op in self.operations:
            if op["op"] == "create" and op["status"] == 409 and op["code"] == "limit_reached":
                self.checked("refused_for_a_reason")
                if self.most[op["subject"]] < self.bounds.cap:
                    self.wrong("refused_for_a_reason", f"refused at the cap, but {op['subject']} never had more than {self.most[op['subject']]}", op)

    def done_once(self):
        """A create that is repeated with its Idempotency-Key happens once, and is answered the same."""
        answers = {}
        for op in self.operations:
            if op["op"] != "create" or not op.get("idempotency"):
                continue
            self.checked("done_once")
            if len(self.recorded.get(str(op["value"]), ())) > 1:
                self.wrong("done_once", f"one Idempotency-Key, and entries {self.recorded[str(op['value'])]}", op)
            if op["status"] == 201:
                first = answers.setdefault(op["idempotency"], op)
                if (first["session"], first["index"]) != (op["session"], op["index"]):
                    self.wrong("done_once", "the repetition was answered with another session", op)

    # Answers.

    def was_down(self, op):
        return any(node == op["node"] and begin <= op["end"] and op["start"] <= end for node, begin, end in self.down)

    def documented_answers(self):
        for op in self.operations:
            self.checked("documented_answers")
            if op["status"] == 0:
                if not self.was_down(op):
                    self.wrong("documented_answers", f"no answer: {op['code']}", op)
            elif op["status"] not in STATUSES[op["op"]]:
                self.wrong("documented_answers", f"answered {op['status']} {op['code']}", op)
            elif op["status"] == 503 and not op["retry_after"]:
                self.wrong("documented_answers", "503 without Retry-After", op)

    def in_time(self):
        for op in self.operations:
            if op["status"] and not self.was_down(op):
                self.checked("in_time")
                if op["end"] - op["start"] > self.bounds.deadline + self.bounds.deadline_slack:
                    self.wrong("in_time", f"answered {op['status']} after {op['end'] - op['start']:.1f} s", op)

    def fair_weather(self):
        """503 is an answer to a fault. Without one it is a fault of its own."""
        for op in self.operations:
            if any(begin <= op["end"] and op["start"] <= end + self.bounds.recovery for begin, end in self.weather):
                continue
            self.checked("fair_weather")
            if op["status"] == 503:
                self.wrong("fair_weather", f"503 {op['code']} in fair weather", op)

    def agreement(self):
        """At the end every node says of every session what the log says."""
        for node in self.expected_nodes:
            if node not in self.final:
                self.wrong("agreement", f"{node} was not asked at the end")
        for node, held in self.final.items():
            for name, session in self.sessions.items():
                if not session.versions:
                    continue
                self.checked("agreement")
                said = held.get(name)
                state = "ended" if session.ended else "active"
                if session.ended and said is not None and said[1] == "ended" and said[0] == len(session.versions):
                    continue
                if not session.ended and self.may_have_expired(session):
                    continue
                if said is None or (said[0], said[1], said[2]) != (len(session.versions), state, session.states[-1]):
                    self.wrong("agreement", f"{node} says {said} of session {name}; the log says {[len(session.versions), state, session.states[-1]]}")

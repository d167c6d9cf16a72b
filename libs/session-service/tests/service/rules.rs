//! One session at a time: tokens, deadlines, versions, replay.

use std::collections::HashSet;
use std::time::Duration;

use session_model::{
    Action, BeyondCap, Digest, EndReason, Policy, Profile, ReusedToken, Role, Seconds, Token, Version,
};
use session_service::{Caller, Idempotency, ListQuery, NewSession, ServiceError, Validation, ValidationReason};

use crate::rig::{Rig, caller, new, patch, policy, seeing};

async fn worth(rig: &Rig, token: &Token) -> Result<Version, ValidationReason> {
    match rig.service.validate(&caller(), &token.expose()).await.unwrap() {
        Validation::Active(session) => Ok(session.version),
        Validation::Inactive(reason) => Err(reason),
    }
}

fn logout() -> EndReason {
    EndReason::requested("logout").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_session_from_beginning_to_end_with_a_receipt_for_every_change() {
    let rig = Rig::new(policy());
    let created = rig.create(None).await;
    let (id, token) = (created.session.id, created.token.clone().unwrap());
    assert_eq!(worth(&rig, &token).await, Ok(Version(1)));
    let updated = rig.service.update(&caller(), id, patch(r#"{"colour":null,"size":"L"}"#), None).await.unwrap();
    assert_eq!(updated.session.attributes.as_json(), r#"{"size":"L"}"#);
    let authenticated =
        rig.service.authenticate(&caller(), id, "alice".into(), vec!["pwd".into()], None, None).await.unwrap();
    let renewed = rig.service.renew(&caller(), id, None).await.unwrap();
    let ended = rig.service.end(&caller(), id, logout()).await.unwrap();
    let again = rig.service.end(&caller(), id, EndReason::requested("other").unwrap()).await.unwrap();
    assert_eq!((again.place, again.replayed), (ended.place, true), "the same receipt");
    assert_eq!(again.session.ended().unwrap().reason, logout());
    for changed in [&created, &updated, &authenticated, &renewed, &ended] {
        rig.prove(changed).await;
    }
    use Action as A;
    let expected = [A::SessionCreated, A::SessionUpdated, A::SessionAuthenticated, A::SessionRenewed, A::SessionEnded];
    assert_eq!(rig.actions(id).await, expected);
    assert_eq!(worth(&rig, &renewed.token.unwrap()).await, Err(ValidationReason::Ended));
    for refused in
        [rig.service.update(&caller(), id, patch("{}"), None).await, rig.service.renew(&caller(), id, None).await]
    {
        assert!(matches!(refused, Err(ServiceError::Ended(_))), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_leaf_holds_personal_data_or_a_token() {
    let rig = Rig::new(policy());
    let created = rig.create(Some("alice@example.org")).await;
    rig.service.update(&caller(), created.session.id, patch(r#"{"card":"4111-1111"}"#), None).await.unwrap();
    let clear: String =
        rig.leaves().await.iter().map(|leaf| String::from_utf8(leaf.encode().unwrap()).unwrap()).collect();
    for secret in ["alice", "4111-1111", "red", "192.0.2.1", &created.token.unwrap().expose()[4..]] {
        assert!(!clear.contains(secret), "{secret} stands in a leaf");
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewed_token_is_honoured_for_the_overlap_only_and_its_late_use_is_recorded_once() {
    let rig = Rig::new(policy());
    let created = rig.create(None).await;
    let (id, old) = (created.session.id, created.token.unwrap());
    let new = rig.service.renew(&caller(), id, None).await.unwrap().token.unwrap();
    assert_eq!(worth(&rig, &old).await, Ok(Version(2)));
    rig.hands.forward(Seconds(31));
    for _ in 0..3 {
        assert_eq!(worth(&rig, &old).await, Err(ValidationReason::Rotated));
    }
    assert_eq!(worth(&rig, &new).await, Ok(Version(3)), "by default the reuse is recorded, and the session goes on");
    let reused = rig.actions(id).await.into_iter().filter(|action| *action == Action::SessionTokenReused).count();
    assert_eq!(reused, 1);
}

#[tokio::test(start_paused = true)]
async fn in_a_regulated_realm_the_late_use_of_a_rotated_token_ends_the_session() {
    let rig = Rig::new(Profile::PciDss.policy());
    let created = rig.create(None).await;
    let new = rig.service.renew(&caller(), created.session.id, None).await.unwrap().token.unwrap();
    rig.hands.forward(Seconds(31));
    assert_eq!(worth(&rig, &created.token.unwrap()).await, Err(ValidationReason::Rotated));
    assert_eq!(worth(&rig, &new).await, Err(ValidationReason::Ended));
    let last = rig.leaves().await.pop().unwrap();
    assert_eq!(last.detail.get("reason").map(String::as_str), Some("token_reuse"));
    assert_eq!(last.actor.role, Role::Node);
}

#[tokio::test(start_paused = true)]
async fn authentication_ends_the_old_token_at_once_without_taking_a_request_under_way_for_theft() {
    let rig = Rig::new(Profile::PciDss.policy());
    let created = rig.create(None).await;
    let (id, old) = (created.session.id, created.token.unwrap());
    let done =
        rig.service.authenticate(&caller(), id, "bob".into(), vec!["pwd".into()], Some("aal2".into()), None).await;
    let new = done.unwrap().token.unwrap();
    assert_eq!(worth(&rig, &old).await, Err(ValidationReason::Rotated), "session fixation");
    assert_eq!(worth(&rig, &new).await, Ok(Version(2)), "not taken for theft");
}

#[tokio::test(start_paused = true)]
async fn forged_foreign_and_cut_tokens_are_unknown() {
    let rig = Rig::new(policy());
    let created = rig.create(None).await;
    let token = created.token.unwrap();
    let forged = Token::new(created.session.id, [9; 32]);
    assert_eq!(worth(&rig, &forged).await, Err(ValidationReason::Unknown));
    let elsewhere = Caller { realm: "other".parse().unwrap(), ..caller() };
    for (caller, text) in
        [(elsewhere.clone(), token.expose()), (caller(), token.expose()[..73].to_owned()), (caller(), String::new())]
    {
        let worth = rig.service.validate(&caller, &text).await.unwrap();
        assert!(matches!(worth, Validation::Inactive(ValidationReason::Unknown)), "{worth:?}");
    }
    let id = created.session.id;
    assert!(matches!(rig.service.get(&elsewhere, id).await, Err(ServiceError::NotFound)));
    assert!(matches!(rig.service.end(&elsewhere, id, logout()).await, Err(ServiceError::NotFound)));
    assert!(matches!(rig.service.receipt(&elsewhere.realm, created.place.index).await, Err(ServiceError::NotFound)));
    assert_eq!(worth(&rig, &token).await, Ok(Version(1)), "nobody else touched it");
}

#[tokio::test(start_paused = true)]
async fn deadlines_hold_at_the_moment_of_use_and_every_end_has_one_entry() {
    let rig = Rig::new(policy());
    let idle = rig.create(None).await;
    let used = rig.create(None).await;
    for _ in 0..24 {
        rig.hands.forward(Seconds::minutes(29));
        assert!(worth(&rig, used.token.as_ref().unwrap()).await.is_ok(), "used, so not idle");
    }
    assert_eq!(worth(&rig, idle.token.as_ref().unwrap()).await, Err(ValidationReason::ExpiredIdle));
    let shown = rig.service.get(&caller(), idle.session.id).await.unwrap();
    assert_eq!(shown.ended().unwrap().at, idle.session.idle_expires_at(), "the deadline, not when it was noticed");
    rig.hands.forward(Seconds::minutes(25));
    assert_eq!(worth(&rig, used.token.as_ref().unwrap()).await, Err(ValidationReason::ExpiredAbsolute));
    let late = rig.service.update(&caller(), used.session.id, patch("{}"), None).await;
    assert!(matches!(late, Err(ServiceError::Ended(_))), "{late:?}");
    rig.reap().await;
    rig.reap().await;
    for (id, reason) in [(idle.session.id, "expired_idle"), (used.session.id, "expired_absolute")] {
        let leaves = rig.leaves().await;
        let ends: Vec<_> =
            leaves.iter().filter(|leaf| leaf.session_id == Some(id) && leaf.action == Action::SessionEnded).collect();
        assert_eq!(ends.len(), 1, "{reason}");
        assert_eq!(ends[0].detail.get("reason").map(String::as_str), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_back_an_hour_neither_revives_a_session_nor_back_dates_an_entry() {
    let rig = Rig::new(policy());
    let created = rig.create(None).await;
    rig.hands.forward(Seconds::minutes(31));
    rig.hands.set_wall_back(Seconds::hours(1));
    assert_eq!(worth(&rig, created.token.as_ref().unwrap()).await, Err(ValidationReason::ExpiredIdle));
    rig.create(None).await;
    // `leaves` proves, among all else, that no time in the log goes back.
    assert_eq!(rig.leaves().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn if_match_refuses_a_stale_version_and_disjoint_changes_survive_without_it() {
    let rig = Rig::new(policy());
    let id = rig.create(None).await.session.id;
    rig.service.update(&caller(), id, patch(r#"{"a":1}"#), Some(Version(1))).await.unwrap();
    let stale = rig.service.update(&caller(), id, patch(r#"{"b":1}"#), Some(Version(1))).await;
    assert!(matches!(stale, Err(ServiceError::StaleVersion { current: Version(2) })), "{stale:?}");
    let ahead = rig.service.update(&caller(), id, patch(r#"{"b":1}"#), Some(Version(9))).await;
    assert!(matches!(ahead, Err(ServiceError::StaleVersion { current: Version(2) })), "{ahead:?}");
}

#[tokio::test(start_paused = true)]
async fn the_same_idempotency_key_replays_the_first_answer_token_included() {
    let rig = Rig::new(Policy { sessions_per_subject: 1, ..policy() });
    let key = |n: u8| Some(Idempotency { key: Digest([n; 32]), request: Digest([1; 32]) });
    let first = rig.service.create(&caller(), new(Some("alice")), key(1)).await.unwrap();
    // The cap is reached: a replay must not run into it.
    let again = rig.service.create(&caller(), new(Some("alice")), key(1)).await.unwrap();
    assert!(again.replayed && !first.replayed);
    assert_eq!(again.token.as_ref().map(Token::expose), first.token.as_ref().map(Token::expose));
    assert_eq!((again.session.id, again.place), (first.session.id, first.place));
    let other = Some(Idempotency { key: Digest([1; 32]), request: Digest([2; 32]) });
    let mismatch = rig.service.create(&caller(), new(Some("alice")), other).await;
    assert!(matches!(mismatch, Err(ServiceError::IdempotencyMismatch)), "{mismatch:?}");
    // The digest of a request that names a subject and little else would tell who it was, to whoever guesses: what is kept of it is keyed.
    let kept = rig.log.answer(&Digest([1; 32])).await.unwrap().unwrap();
    assert_ne!(kept.request, Digest([1; 32]));
    // A version before kept digests without a key, and a request may be repeated across an upgrade.
    let plain = Some(Idempotency { key: Digest([1; 32]), request: kept.request });
    assert!(rig.service.create(&caller(), new(Some("alice")), plain).await.unwrap().replayed);
    let renewed = rig.service.renew(&caller(), first.session.id, key(2)).await.unwrap();
    rig.service.update(&caller(), first.session.id, patch(r#"{"a":1}"#), None).await.unwrap();
    let replayed = rig.service.renew(&caller(), first.session.id, key(2)).await.unwrap();
    assert_eq!(replayed.session.version, renewed.session.version, "the session as the first answer showed it");
    assert_eq!(replayed.token.unwrap().expose(), renewed.token.unwrap().expose());
    // Another process knows it too.
    let beside = rig.beside();
    assert!(beside.service.create(&caller(), new(Some("alice")), key(1)).await.unwrap().replayed);
    // After a day it is forgotten, and stands for a new request.
    rig.hands.forward(Seconds::hours(25));
    let anew = rig.service.create(&caller(), new(Some("bob")), key(1)).await.unwrap();
    assert!(!anew.replayed);
}

#[tokio::test(start_paused = true)]
async fn the_cap_denies_or_evicts_as_the_policy_says_and_expired_sessions_do_not_count() {
    for beyond_cap in [BeyondCap::Deny, BeyondCap::EvictOldest, BeyondCap::EvictLeastRecent] {
        let rig = Rig::new(Policy { sessions_per_subject: 2, beyond_cap, ..policy() });
        let first = rig.create(Some("alice")).await;
        rig.hands.forward(Seconds(10));
        let second = rig.create(Some("alice")).await;
        rig.hands.forward(Seconds::minutes(10));
        assert!(worth(&rig, first.token.as_ref().unwrap()).await.is_ok());
        let third = rig.service.create(&caller(), new(Some("alice")), None).await;
        let gone = match beyond_cap {
            BeyondCap::Deny => {
                assert!(matches!(third, Err(ServiceError::LimitReached { cap: 2 })), "{third:?}");
                None
            }
            BeyondCap::EvictOldest => Some(first.session.id),
            BeyondCap::EvictLeastRecent => Some(second.session.id),
        };
        for id in [first.session.id, second.session.id] {
            let ended = rig.service.get(&caller(), id).await.unwrap().ended().map(|ended| ended.reason.clone());
            assert_eq!(ended, (gone == Some(id)).then_some(EndReason::Evicted), "{beyond_cap:?}");
        }
        assert!(rig.service.create(&caller(), new(Some("bob")), None).await.is_ok(), "another subject");
        rig.hands.forward(Seconds::minutes(40));
        assert!(rig.service.create(&caller(), new(Some("alice")), None).await.is_ok(), "the others have expired");
    }
}

#[tokio::test(start_paused = true)]
async fn log_out_everywhere_ends_all_but_one_and_lists_page_through_everything() {
    let rig = Rig::new(policy());
    let mut ids = HashSet::new();
    for _ in 0..4 {
        ids.insert(rig.create(Some("alice")).await.session.id);
        rig.hands.forward(Seconds(1));
    }
    rig.create(Some("bob")).await;
    let mut listed = HashSet::new();
    let mut query = ListQuery { subject: Some("alice".into()), active: Some(true), limit: 3, ..ListQuery::default() };
    loop {
        let page = rig.service.list(&caller(), &query).await.unwrap();
        listed.extend(page.items.iter().map(|session| session.id));
        query.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let kept = *ids.iter().next().unwrap();
    let ended = rig.service.end_subject(&caller(), "alice", Some(kept), logout()).await.unwrap();
    assert_eq!(ended.len(), 3);
    for changed in &ended {
        rig.prove(changed).await;
    }
    let all = ListQuery { active: Some(true), limit: 10, ..ListQuery::default() };
    assert_eq!(rig.service.list(&caller(), &all).await.unwrap().items.len(), 2, "the one kept, and bob's");
    assert!(rig.service.end_subject(&caller(), "nobody", None, logout()).await.unwrap().is_empty());
    assert_eq!(rig.service.end_matching(&caller(), None, None, logout()).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_longer_than_the_policy_is_refused_and_a_shorter_one_kept() {
    let rig = Rig::new(policy());
    let asked = |idle| NewSession { idle_timeout: Some(Seconds(idle)), ..new(None) };
    for bad in [0, 1_801] {
        let refused = rig.service.create(&caller(), asked(bad), None).await;
        assert!(matches!(refused, Err(ServiceError::Timeout { .. })), "{refused:?}");
    }
    let short = rig.service.create(&caller(), asked(2), None).await.unwrap();
    rig.hands.forward(Seconds(3));
    assert_eq!(worth(&rig, &short.token.unwrap()).await, Err(ValidationReason::ExpiredIdle));
    assert_eq!(rig.leaves().await.len(), 1, "what was refused was not recorded");
}

#[tokio::test(start_paused = true)]
async fn where_reads_are_audited_each_is_an_entry() {
    let rig = Rig::new(Policy { audited_reads: true, reused_token: ReusedToken::Record, ..policy() });
    let id = rig.create(None).await.session.id;
    rig.service.get(&caller(), id).await.unwrap();
    assert_eq!(rig.actions(id).await, [Action::SessionCreated, Action::SessionRead]);
    let after = rig.service.update(&caller(), id, patch("{}"), None).await.unwrap();
    assert_eq!(after.session.version, Version(2), "a read makes no version");
}

#[tokio::test(start_paused = true)]
async fn another_process_sees_what_was_done_before_and_both_write_one_log() {
    let one = Rig::new(policy());
    let created = one.create(Some("alice")).await;
    let two = one.beside();
    let changed = two.service.update(&caller(), created.session.id, patch(r#"{"by":2}"#), None).await.unwrap();
    // Reading one's writes on the other node.
    let seen = one.service.get(&seeing(changed.place.index), created.session.id).await.unwrap();
    assert_eq!(seen.version, Version(2));
    let ended = one.service.end(&caller(), created.session.id, logout()).await.unwrap();
    let worth = two.service.validate(&seeing(ended.place.index), &created.token.unwrap().expose()).await.unwrap();
    assert!(matches!(worth, Validation::Inactive(ValidationReason::Ended)), "{worth:?}");
    let ahead = one.service.get(&seeing(session_model::LeafIndex(999)), created.session.id).await;
    assert!(matches!(ahead, Err(ServiceError::Unavailable(_))), "{ahead:?}");
    // Without an index, staleness is bounded by the follower's pace.
    let third = two.create(None).await;
    one.service.end(&caller(), third.session.id, logout()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(two.service.get(&caller(), third.session.id).await.unwrap().ended().is_some());
    assert_eq!(one.leaves().await.len(), 5);
}

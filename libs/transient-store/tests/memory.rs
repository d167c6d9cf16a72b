//! The memory store passes the suite, keeps its budget, forgets, and comes to the same as its peers in whatever order they speak.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use proptest::prelude::*;
use session_model::transient::{Stamped, bucket};
use session_model::{Digest, RealmName, Seconds, Slot};
use session_view::test_util::at;
use transient_store::conformance::{self, after, all, begun, end, put};
use transient_store::{MemoryTransients, Outcome, Put, TransientStore};

fn realm(name: &str) -> RealmName {
    name.parse().unwrap()
}

#[tokio::test]
async fn it_passes_the_suite() {
    let store = MemoryTransients::new(0);
    conformance::one_of_many(&[&store], &realm("a")).await;
    conformance::ends_are_final(&store, &realm("b")).await;
    conformance::seats(&[&store], &realm("c"), &realm("d")).await;
    conformance::lists(&store, &realm("e"), &realm("f")).await;
    conformance::deadlines(&store, &realm("g")).await;
    conformance::answers(&store, &realm("h"), at(0), Digest([1; 32])).await;
}

#[tokio::test]
async fn at_its_budget_no_session_begins_and_what_is_over_makes_room() {
    let store = MemoryTransients::new(20_000);
    let mut begun_ones = Vec::new();
    for n in 0.. {
        let state = begun(&realm("a"), n, None);
        match put(&store, Put { state: state.clone(), base: None, cap: None, answer: None, acknowledged_by: 0 }).await {
            Outcome::Done => begun_ones.push(state),
            outcome => {
                assert_eq!(outcome, Outcome::Full);
                break;
            }
        }
    }
    assert!((10..100).contains(&begun_ones.len()), "{}", begun_ones.len());
    assert!(store.status().bytes <= 20_000);
    for state in &begun_ones {
        let ended = after(state, 1, 1, end);
        let put =
            put(&store, Put { state: ended, base: Some(state.stamp), cap: None, answer: None, acknowledged_by: 0 })
                .await;
        assert_eq!(put, Outcome::Done);
    }
    let over = begun_ones[0].session.expires_at;
    store.sweep(over).await;
    assert_eq!(store.status().held, begun_ones.len(), "an end is remembered while somebody may not have heard of it");
    store.sweep(over.plus(Seconds::minutes(10))).await;
    assert_eq!((store.status().held, store.status().bytes, store.sums()), (0, 0, [0; 256]));
    assert!(store.list(&all(&realm("a"))).await.unwrap().is_empty());
    assert_eq!(store.merge(begun_ones, over.plus(Seconds::minutes(10))).changed, 0, "nobody brings it back");
}

/// States of three sessions as two writers would make them, apart from one another.
fn any_states() -> impl Strategy<Value = Vec<Stamped>> {
    let one = (0_u64..3, 1_i64..6, 1_u128..3, any::<bool>(), 0_i64..3);
    prop::collection::vec(one, 1..40).prop_map(|made| {
        let mut states = Vec::new();
        for (n, changes, writer, ends, used) in made {
            let mut state = begun(&realm("a"), n, Some("ada"));
            for change in 1..=changes {
                // What a writer makes at a time is always the same.
                state = after(&state, change, writer, |_| ());
            }
            if ends {
                state = after(&state, changes + 10, writer, end);
            }
            let mut session = session_model::Session::clone(&state.session);
            session.last_seen_at = at(used);
            states.push(Stamped { session: session.into(), ..state });
        }
        states
    })
}

proptest! {
    #[test]
    fn whatever_the_order_and_however_often_all_come_to_hold_the_same(
        states in any_states(),
        (shuffled, again) in (any::<u64>(), prop::collection::vec(any::<prop::sample::Index>(), 0..20)),
    ) {
        let one = MemoryTransients::new(0);
        one.merge(states.clone(), at(0));
        let mut others = states.clone();
        others.extend(again.iter().map(|which| which.get(&states).clone()));
        others.sort_by_key(|state| state.fingerprint() ^ shuffled);
        let two = MemoryTransients::new(0);
        for state in others {
            two.merge(vec![state], at(0));
        }
        prop_assert_eq!(one.sums(), two.sums());
        let parts = |store: &MemoryTransients| {
            let mut held: Vec<u64> = (0..=255).flat_map(|which| store.bucket(which)).map(|s| s.fingerprint()).collect();
            held.sort_unstable();
            held
        };
        prop_assert_eq!(parts(&one), parts(&two));
        prop_assert_eq!(one.status().bytes, two.status().bytes);
    }

    /// What is kept beside the table never parts from it.
    #[test]
    fn sums_are_those_of_what_is_held(states in any_states()) {
        let store = MemoryTransients::new(0);
        store.merge(states, at(0));
        for which in 0..=255_u8 {
            let held = store.bucket(which);
            prop_assert!(held.iter().all(|state| bucket(state.session.id) == which));
            let sum = held.iter().fold(0_u64, |sum, state| sum.wrapping_add(state.fingerprint()));
            prop_assert_eq!(store.sums()[usize::from(which)], sum);
        }
    }
}

#[tokio::test]
async fn slots_are_summed_handed_out_and_dropped_as_they_stand() {
    let store = MemoryTransients::new(0);
    let realm = realm("a");
    let states: Vec<Stamped> = (0..200).map(|n| begun(&realm, n, Some("ada"))).collect();
    store.merge(states.clone(), at(1));
    let gone = after(&states[0], 1, 1, end);
    let ended = Put { state: gone, base: Some(states[0].stamp), cap: None, answer: None, acknowledged_by: 0 };
    assert_eq!(put(&store, ended).await, Outcome::Done);
    let by_bucket = store.slot_sums().iter().zip(Slot::all()).fold([0_u64; 256], |mut sums, (sum, slot)| {
        sums[slot.index() % 256] = sums[slot.index() % 256].wrapping_add(*sum);
        sums
    });
    assert_eq!(by_bucket, store.sums());
    let goes: Vec<Slot> = states[..100].iter().map(|state| Slot::of(state.session.id)).collect();
    let in_them = store.in_slots(|slot| goes.contains(&slot)).len();
    assert!(in_them >= 100);
    let before = store.slot_sums();
    // One has changed since its sum was taken.
    store.mark_used(states[1].session.id, at(5)).await.unwrap();
    let changed = store.in_slots(|slot| slot == goes[1]).len();
    let sums: Vec<(Slot, u64)> = goes.iter().map(|slot| (*slot, before[slot.index()])).collect();
    assert_eq!(store.drop_slots(&sums), in_them - changed);
    assert_eq!(store.status().held, 200 - in_them + changed);
    assert!(store.get(states[1].session.id).await.unwrap().is_some());
    assert!(store.get(states[0].session.id).await.unwrap().is_none());
    assert_eq!(store.list(&all(&realm)).await.unwrap().len(), 200 - in_them + changed);
    assert_eq!(store.due(at(1_802), 1_000).await.unwrap().len(), 200 - in_them + changed - 1, "but the one used later");
    // What was dropped may come again, and everything goes.
    assert_eq!(store.merge(states[2..3].to_vec(), at(1)).changed, 1);
    let all_slots: Vec<(Slot, u64)> = Slot::all().zip(store.slot_sums()).collect();
    store.drop_slots(&all_slots);
    assert_eq!((store.status().held, store.status().bytes, store.slot_sums()), (0, 0, vec![0; 1_024]));
}

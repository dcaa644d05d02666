use super::*;
use crate::replica::decisions::{Incarnation, Position};
use crate::units::Lsn;

const NOW_MS: u64 = 1_800_000_000_000;
const SOON: u64 = NOW_MS / 1000 + 3600;

pub(in crate::replica::control) fn data(name: &str) -> NodeEntry {
    NodeEntry {
        name: name.into(),
        kind: NodeKind::Data,
        mode: ReplicaMode::Sync,
        cluster_address: format!("{name}:9700"),
        api_address: None,
        nbd_address: None,
        key_fingerprint: [0; 32],
        announced_url: None,
    }
}

pub(in crate::replica::control) fn witness(name: &str) -> NodeEntry {
    NodeEntry { kind: NodeKind::Witness, ..data(name) }
}

fn member(node: u32, life: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(life) }
}

pub(in crate::replica::control) fn cluster() -> ClusterState {
    ClusterState::of(Uuid([7; 16]), NodeId(1), data("a"), Record::of(member(1, 10)), vec![1, 2, 3])
}

fn joined(state: &mut ClusterState, token: u8, entry: NodeEntry) -> Outcome {
    state.apply(&Decision::Join { token: [token; 16], token_expires: SOON, entry }, NOW_MS)
}

fn role(state: &mut ClusterState, change: Change) -> Outcome {
    let command = state.record.as_ref().unwrap().command(change);
    state.apply(&Decision::Role(command), NOW_MS)
}

/// Node 2 is a member of the set.
fn two() -> ClusterState {
    let mut state = cluster();
    assert_eq!(joined(&mut state, 1, data("b")), Outcome::Joined(NodeId(2)));
    assert_eq!(role(&mut state, Change::In(member(2, 20))), Outcome::Changed);
    state
}

fn refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unchanged(_))
}

#[test]
fn ids_are_never_given_out_twice() {
    let mut state = cluster();
    assert_eq!(joined(&mut state, 1, data("b")), Outcome::Joined(NodeId(2)));
    assert_eq!(state.apply(&Decision::Remove(NodeId(2)), NOW_MS), Outcome::Changed);
    assert_eq!(joined(&mut state, 2, data("b")), Outcome::Joined(NodeId(3)));
    assert!(state.removed.contains(&NodeId(2)) && !state.nodes.contains_key(&NodeId(2)));
    state.next_node = u32::MAX;
    assert!(refused(&joined(&mut state, 3, data("c"))));
    assert!(!state.spent_tokens.contains_key(&[3; 16]));
}

#[test]
fn a_token_makes_one_node_while_it_is_good() {
    let mut state = cluster();
    let before = state.clone();
    let expired = Decision::Join { token: [1; 16], token_expires: NOW_MS / 1000, entry: data("b") };
    assert!(refused(&state.apply(&expired, NOW_MS)));
    assert!(refused(&joined(&mut state, 1, data("a"))), "the name is taken");
    assert_eq!(state, before);
    assert_eq!(joined(&mut state, 1, data("b")), Outcome::Joined(NodeId(2)));
    assert!(refused(&joined(&mut state, 1, data("c"))));
    // It is forgotten only long after it has expired, and is then refused for that.
    let day = 24 * 3600 * 1000;
    let late = |token| Decision::Join { token: [token; 16], token_expires: SOON, entry: data("c") };
    assert!(refused(&state.apply(&late(1), NOW_MS + day / 2)));
    assert!(state.spent_tokens.contains_key(&[1; 16]));
    assert!(refused(&state.apply(&late(1), NOW_MS + 2 * day)));
    assert!(state.spent_tokens.is_empty() && state.nodes.len() == 2);
}

#[test]
fn p7_only_synchronous_data_nodes_join_the_set() {
    let mut state = cluster();
    joined(&mut state, 1, witness("w"));
    joined(&mut state, 2, NodeEntry { mode: ReplicaMode::Async, ..data("far") });
    for node in [2, 3, 4] {
        assert!(refused(&role(&mut state, Change::In(member(node, 5)))), "{node}");
    }
    assert_eq!(state.record.as_ref().unwrap().set.len(), 1);
    let mut state = two();
    let asynchronous = NodeEntry { mode: ReplicaMode::Async, ..data("b") };
    let update = Decision::Update { node: NodeId(2), entry: asynchronous };
    assert!(refused(&state.apply(&update, NOW_MS)));
    assert_eq!(role(&mut state, Change::Out(NodeId(2))), Outcome::Changed);
    assert_eq!(state.apply(&update, NOW_MS), Outcome::Changed);
}

#[test]
fn p7_what_was_asked_for_a_node_is_not_decided_once_it_has_changed_its_mode() {
    let mut state = cluster();
    joined(&mut state, 1, data("b"));
    let late = state.record.as_ref().unwrap().command(Change::In(member(2, 20)));
    for mode in [ReplicaMode::Async, ReplicaMode::Sync] {
        let update = Decision::Update { node: NodeId(2), entry: NodeEntry { mode, ..data("b") } };
        assert_eq!(state.apply(&update, NOW_MS), Outcome::Changed);
    }
    assert!(refused(&state.apply(&Decision::Role(late), NOW_MS)));
    assert_eq!(role(&mut state, Change::In(member(2, 20))), Outcome::Changed);
}

#[test]
fn p7_a_command_from_another_record_does_nothing() {
    let mut state = two();
    let late = state.record.as_ref().unwrap().command(Change::Out(NodeId(2)));
    assert_eq!(role(&mut state, Change::Promote(member(2, 20))), Outcome::Changed);
    let before = state.clone();
    assert!(refused(&state.apply(&Decision::Role(late), NOW_MS)));
    assert_eq!(state, before);
}

#[test]
fn failovers_are_remembered_with_their_reason() {
    let mut state = two();
    let hand_over = |node, life| Change::HandOver { target: member(node, life), at: Lsn(1) };
    for _ in 0..HISTORY_MAX {
        assert_eq!(role(&mut state, hand_over(2, 20)), Outcome::Changed);
        assert_eq!(role(&mut state, hand_over(1, 10)), Outcome::Changed);
    }
    assert_eq!(role(&mut state, Change::Promote(member(2, 20))), Outcome::Changed);
    assert_eq!(state.history.len(), HISTORY_MAX);
    let last = state.history.back().unwrap();
    let expected = Failover {
        old: NodeId(1),
        new: NodeId(2),
        reason: FailoverReason::Promotion,
        epoch: Epoch { generation: 0, number: 2 + 2 * HISTORY_MAX as u32 },
        at_ms: NOW_MS,
    };
    assert_eq!(last, &expected);
    assert_eq!(state.history[0].reason, FailoverReason::HandOver);
    let stands = Position { epoch: expected.epoch, lsn: Lsn(3) };
    let reports = BTreeMap::from([(NodeId(2), (Incarnation(21), stands))]);
    assert_eq!(role(&mut state, Change::Start { primary: member(2, 21), reports }), Outcome::Changed);
    assert_eq!(state.history.back().unwrap().reason, FailoverReason::Start);
}

#[test]
fn p7_force_begins_another_generation_once() {
    let mut state = two();
    let from = state.record.as_ref().unwrap().epoch;
    joined(&mut state, 2, witness("w"));
    for node in [3, 4] {
        let decision = Decision::Force { member: member(node, 1), from };
        assert!(refused(&state.apply(&decision, NOW_MS)), "{node} is no data node");
    }
    let force = Decision::Force { member: member(2, 99), from };
    assert_eq!(state.apply(&force, NOW_MS), Outcome::Changed);
    let record = state.record.clone().unwrap();
    assert_eq!(record.epoch, Epoch { generation: 1, number: 1 });
    assert!(record.names(member(2, 99)) && record.set.len() == 1 && record.primary == NodeId(2));
    assert_eq!(state.history.back().unwrap().reason, FailoverReason::Force);
    assert!(refused(&state.apply(&force, NOW_MS)));
    assert_eq!(state.record, Some(record));
}

#[test]
fn a_primary_is_not_removed_and_a_member_leaves_the_set_with_its_membership() {
    let mut state = two();
    for node in [1, 3] {
        assert!(refused(&state.apply(&Decision::Remove(NodeId(node)), NOW_MS)), "{node}");
    }
    let version = state.record.as_ref().unwrap().version;
    assert_eq!(state.apply(&Decision::Remove(NodeId(2)), NOW_MS), Outcome::Changed);
    let record = state.record.as_ref().unwrap();
    assert!(record.version > version && !record.set.contains_key(&NodeId(2)));
}

#[test]
fn an_announced_name_becomes_the_node_that_joins_under_it() {
    let mut state = cluster();
    let announce = |name: &str| Decision::Announce { name: name.into(), url: "https://x".into() };
    assert_eq!(state.apply(&announce("b"), NOW_MS), Outcome::Changed);
    assert!(refused(&state.apply(&announce("b"), NOW_MS)));
    assert_eq!(joined(&mut state, 1, data("b")), Outcome::Joined(NodeId(2)));
    assert!(state.announced.is_empty());
    assert_eq!(state.nodes[&NodeId(2)].announced_url.as_deref(), Some("https://x"));
    for number in 0..ANNOUNCED_MAX {
        assert_eq!(state.apply(&announce(&format!("n{number}")), NOW_MS), Outcome::Changed);
    }
    assert!(refused(&state.apply(&announce("one more"), NOW_MS)));
    assert_eq!(state.apply(&Decision::Withdraw("n0".into()), NOW_MS), Outcome::Changed);
    assert!(refused(&state.apply(&Decision::Withdraw("n0".into()), NOW_MS)));
    assert_eq!(state.apply(&announce("one more"), NOW_MS), Outcome::Changed);
}

#[test]
fn a_node_says_something_else_of_itself_but_not_what_it_is() {
    let mut state = two();
    let update = |state: &mut ClusterState, node, entry| {
        state.apply(&Decision::Update { node: NodeId(node), entry }, NOW_MS)
    };
    assert!(refused(&update(&mut state, 2, witness("b"))));
    assert!(refused(&update(&mut state, 2, data("a"))), "the name is taken");
    assert!(refused(&update(&mut state, 2, data("b"))), "as before");
    assert!(refused(&update(&mut state, 3, data("c"))));
    let moved = NodeEntry { cluster_address: "elsewhere:1".into(), ..data("b") };
    assert_eq!(update(&mut state, 2, moved.clone()), Outcome::Changed);
    assert_eq!(state.nodes[&NodeId(2)], moved);
}

#[test]
fn the_state_reads_back_as_it_was_written() {
    let mut state = two();
    joined(&mut state, 2, witness("w"));
    let from = state.record.as_ref().unwrap().epoch;
    state.apply(&Decision::Force { member: member(1, 11), from }, NOW_MS);
    let text = serde_json::to_vec(&state).unwrap();
    assert_eq!(serde_json::from_slice::<ClusterState>(&text).unwrap(), state);
}

//! Does the consensus group decide the same everywhere, with links cut, nodes gone and back, and files reopened?
//! The real one, over links inside this process that can be cut.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]
#![expect(clippy::disallowed_methods, reason = "real threads, real time")]

mod nodes;

use std::collections::BTreeSet;
use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::replica::control::Control;
use sinter::replica::control::raft::RaftControl;
use sinter::replica::control::state::{Decision, FailoverReason, NodeEntry, NodeKind, Outcome, ReplicaMode};
use sinter::replica::decisions::{Change, Incarnation, Member, NodeId};

use crate::nodes::{CLUSTER, Nodes, entry, eventually};

const PATIENCE: Duration = Duration::from_secs(10);

fn announce(number: u32) -> Decision {
    Decision::Announce { name: format!("name-{number}"), url: format!("https://{number}") }
}

fn announced(nodes: &Nodes, node: u32) -> Vec<String> {
    nodes.control(node).state().announced.keys().cloned().collect()
}

#[test]
fn decisions_apply_everywhere_and_in_one_order() {
    let nodes = Nodes::three("order");
    // All at once, through all nodes: the order is the group's to choose, and everywhere the same.
    std::thread::scope(|scope| {
        for node in 1..=3 {
            let control = nodes.control(node);
            scope.spawn(move || {
                for number in 0..5 {
                    let url = format!("https://{node}");
                    let decision = Decision::Announce { name: format!("name-{number}"), url };
                    assert_eq!(control.decide(decision, PATIENCE).unwrap(), Outcome::Changed);
                }
            });
        }
    });
    eventually("all states are equal", || {
        let states: Vec<_> = (1..=3).map(|node| nodes.control(node).state()).collect();
        states[0].announced.len() == 5 && states.windows(2).all(|two| two[0] == two[1])
    });
}

#[test]
fn a_proposal_is_decided_and_subscribers_hear_of_it() {
    let nodes = Nodes::three("propose");
    let (tell, told) = std::sync::mpsc::channel();
    nodes.control(3).subscribe(Box::new(move || {
        let _ = tell.send(());
    }));
    nodes.control(2).propose(announce(1));
    told.recv_timeout(PATIENCE).expect("node 3 hears of what node 2 proposed");
    eventually("it is applied", || (1..=3).all(|node| announced(&nodes, node) == ["name-1"]));
}

#[test]
fn p7_without_a_leader_the_others_decide_and_the_former_one_does_not() {
    let nodes = Nodes::three("cut");
    let leader = nodes.leader();
    let others: Vec<u32> = (1..=3).filter(|node| *node != leader).collect();
    nodes.cut_off(leader);
    let refused = nodes.control(leader).decide(announce(9), Duration::from_secs(1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoQuorum);
    eventually("the leader sees that nobody hears it", || !nodes.control(leader).standing().has_quorum);
    assert_eq!(nodes.control(others[0]).decide(announce(1), PATIENCE).unwrap(), Outcome::Changed);
    assert_eq!(announced(&nodes, leader), Vec::<String>::new());
    nodes.heal();
    eventually("the returning node has caught up", || announced(&nodes, leader) == ["name-1"]);
    eventually("one node leads, and all know it", || {
        let leaders: BTreeSet<_> = (1..=3).map(|node| nodes.control(node).standing().leader).collect();
        leaders.len() == 1 && !leaders.contains(&None)
    });
    let ids: BTreeSet<_> = (1..=3).map(|node| nodes.control(node).standing().leader).collect();
    assert_ne!(ids, BTreeSet::from([None]));
}

#[test]
fn a_node_that_was_away_for_long_is_sent_the_whole_state() {
    let nodes = Nodes::three("snapshot");
    let away = (1..=3).find(|node| *node != nodes.leader()).unwrap();
    let stays = (1..=3).find(|node| *node != away).unwrap();
    nodes.cut_off(away);
    // More than the log keeps.
    for number in 0..450 {
        let decision = Decision::Announce { name: "name".into(), url: format!("https://{number}") };
        assert_eq!(nodes.control(stays).decide(decision, PATIENCE).unwrap(), Outcome::Changed);
    }
    nodes.heal();
    eventually("it has the newest state", || {
        nodes.control(away).state().announced.get("name").map(String::as_str) == Some("https://449")
    });
}

#[test]
fn a_restart_keeps_everything() {
    let mut nodes = Nodes::three("restart");
    assert_eq!(nodes.control(2).decide(announce(1), PATIENCE).unwrap(), Outcome::Changed);
    eventually("it is applied", || (1..=3).all(|node| announced(&nodes, node) == ["name-1"]));
    let before = nodes.control(1).state();
    for node in 1..=3 {
        nodes.stop(node);
    }
    for node in 1..=3 {
        nodes.open(node);
        assert_eq!(nodes.control(node).state(), before, "node {node}, from its file alone");
    }
    assert_eq!(nodes.control(3).decide(announce(2), PATIENCE).unwrap(), Outcome::Changed);
    // One alone has no quorum after a restart.
    for node in 1..=3 {
        nodes.stop(node);
    }
    nodes.open(1);
    let alone = nodes.control(1).decide(announce(3), Duration::from_secs(1)).unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::NoQuorum);
    let standing = nodes.control(1).standing();
    assert_eq!((standing.leader, standing.leads, standing.has_quorum), (None, false, false));
    assert_eq!(standing.voters, [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(
        RaftControl::open(&nodes.path(1), NodeId(2), nodes.link(2)).err().map(|error| error.kind()),
        Some(ErrorKind::Busy)
    );
    nodes.stop(1);
    let other = RaftControl::open(&nodes.path(1), NodeId(2), nodes.link(2));
    assert_eq!(other.err().map(|error| error.kind()), Some(ErrorKind::Invalid));
}

#[test]
fn a_cluster_is_not_begun_over_another() {
    let mut nodes = Nodes::one("begin");
    nodes.stop(1);
    let again = nodes.begin(1);
    assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::Exists));
    nodes.open(1);
    assert!(nodes.control(1).state().record.is_some());
    assert_eq!(nodes.control(1).state().identity, [1, 2, 3]);
}

#[test]
fn ids_are_never_given_out_twice_and_a_token_is_spent_once() {
    let mut nodes = Nodes::one("ids");
    let joins = |nodes: &Nodes, token: u8, entry: NodeEntry| {
        nodes.control(1).decide(nodes::join_with(token, entry), PATIENCE).unwrap()
    };
    assert_eq!(joins(&nodes, 1, entry("b", 2)), Outcome::Joined(NodeId(2)));
    assert_eq!(nodes.control(1).decide(Decision::Remove(NodeId(2)), PATIENCE).unwrap(), Outcome::Changed);
    assert!(matches!(joins(&nodes, 1, entry("c", 3)), Outcome::Unchanged(_)));
    nodes.stop(1);
    nodes.open(1);
    eventually("a group of one has a quorum", || nodes.control(1).standing().has_quorum);
    assert!(matches!(joins(&nodes, 1, entry("c", 3)), Outcome::Unchanged(_)));
    assert_eq!(joins(&nodes, 2, entry("c", 3)), Outcome::Joined(NodeId(3)));
}

#[test]
fn voters_are_odd_in_number_and_the_second_node_votes_when_the_third_comes() {
    let mut nodes = Nodes::one("voters");
    nodes.join(2, entry("b", 2));
    eventually("node 2 follows without a vote", || {
        let standing = nodes.control(1).standing();
        standing.voters == [NodeId(1)] && standing.learners == [NodeId(2)]
    });
    eventually("it has the state", || nodes.control(2).state().nodes.len() == 2);
    let witness = NodeEntry { kind: NodeKind::Witness, ..entry("w", 3) };
    nodes.join(3, witness);
    let all = [NodeId(1), NodeId(2), NodeId(3)];
    eventually("all three vote", || (1..=3).all(|node| nodes.control(node).standing().voters == all));
    // An asynchronous node follows without a vote.
    nodes.join(4, NodeEntry { mode: ReplicaMode::Async, ..entry("far", 4) });
    eventually("the fourth follows", || nodes.control(4).state().nodes.len() == 4);
    assert_eq!(nodes.control(1).standing().voters, all);
    // The reverse: with two left the primary votes alone, and the removed node is none any more.
    assert_eq!(nodes.control(2).decide(Decision::Remove(NodeId(3)), PATIENCE).unwrap(), Outcome::Changed);
    eventually("the primary votes alone", || {
        let standing = nodes.control(1).standing();
        standing.voters == [NodeId(1)] && standing.learners == [NodeId(2), NodeId(4)] && standing.leads
    });
    assert!(nodes.control(3).decide(announce(1), Duration::from_millis(600)).is_err());
}

#[test]
fn the_vote_goes_with_the_primary() {
    let mut nodes = Nodes::one("primary");
    nodes.join(2, entry("b", 2));
    eventually("node 2 follows", || nodes.control(2).state().nodes.len() == 2);
    let second = Member { node: NodeId(2), incarnation: Incarnation(20) };
    for change in [Change::In(second), Change::Promote(second)] {
        let command = nodes.control(1).state().record.clone().unwrap().command(change);
        assert_eq!(nodes.control(1).decide(Decision::Role(command), PATIENCE).unwrap(), Outcome::Changed);
    }
    eventually("node 2 votes alone, and leads", || {
        let standing = nodes.control(2).standing();
        standing.voters == [NodeId(2)] && standing.learners == [NodeId(1)] && standing.leads
    });
    nodes.cut_off(1);
    assert_eq!(nodes.control(2).decide(announce(1), PATIENCE).unwrap(), Outcome::Changed);
}

#[test]
fn p7_by_force_one_node_goes_on_and_hears_nobody_of_the_former_group() {
    let mut nodes = Nodes::three("force");
    assert_eq!(nodes.control(1).decide(announce(1), PATIENCE).unwrap(), Outcome::Changed);
    eventually("it is applied", || (1..=3).all(|node| announced(&nodes, node) == ["name-1"]));
    nodes.stop(2);
    nodes.open_alone(2);
    let state = nodes.control(2).state();
    assert_eq!(state.announced.len(), 1);
    let member = Member { node: NodeId(2), incarnation: Incarnation(21) };
    let force = Decision::Force { member, from: state.record.as_ref().unwrap().epoch };
    assert_eq!(nodes.control(2).decide(force, PATIENCE).unwrap(), Outcome::Changed);
    let state = nodes.control(2).state();
    let record = state.record.as_ref().unwrap();
    assert_eq!((record.epoch.generation, record.epoch.number, record.primary), (1, 1, NodeId(2)));
    assert_eq!(state.history.back().unwrap().reason, FailoverReason::Force);
    // The others still have their own quorum: neither side takes anything from the other.
    assert_eq!(nodes.control(1).decide(announce(2), PATIENCE).unwrap(), Outcome::Changed);
    eventually("the former group has decided", || announced(&nodes, 3).len() == 2);
    assert_eq!(nodes.control(2).decide(announce(3), PATIENCE).unwrap(), Outcome::Changed);
    assert_eq!(announced(&nodes, 2), ["name-1", "name-3"]);
    assert_eq!(announced(&nodes, 1), ["name-1", "name-2"]);
    assert_eq!(nodes.control(2).standing().voters, [NodeId(2)]);
    // It is not undone by a restart.
    nodes.stop(2);
    nodes.open(2);
    assert_eq!(nodes.control(2).decide(announce(4), PATIENCE).unwrap(), Outcome::Changed);
    assert_eq!(nodes.control(2).state().record.as_ref().unwrap().epoch.generation, 1);
}

#[test]
fn hostile_bytes_are_refused() {
    let nodes = Nodes::three("hostile");
    // What passes between nodes 1 and 2 in the meantime is real, and is then spoiled in every place.
    let (from, real) = nodes.overheard(2);
    let refused = |from: u32, bytes: &[u8]| nodes.control(2).answer(NodeId(from), bytes).is_err();
    assert!(!refused(from, &real));
    let third = if from == 1 { 3 } else { 1 };
    assert!(refused(third, &real), "it speaks for another");
    assert!(refused(2, &real), "it is this node");
    assert!(refused(99, &real), "nobody knows it");
    for length in 0..real.len() {
        assert!(refused(from, &real[..length]), "cut to {length}");
    }
    for at in 0..real.len() {
        let mut spoiled = real.clone();
        spoiled[at] = b'{';
        // Some text is still in order with this: what matters is that nothing breaks.
        let _ = nodes.control(2).answer(NodeId(from), &spoiled);
    }
    let text = String::from_utf8(real).unwrap();
    let cluster = format!("{:?}", CLUSTER.0).replace(' ', "");
    assert!(text.contains(&cluster));
    let other = text.replace(&cluster, &cluster.replace('7', "8"));
    assert!(refused(from, other.as_bytes()), "another cluster");
    for bytes in [&b"\x01"[..], b"\x02{}", b"\x01[[[[[[[[", b"", &[0xff; 300]] {
        assert!(refused(from, bytes));
    }
    let deep = [&b"\x01"[..], &vec![b'['; 1 << 20]].concat();
    assert!(refused(from, &deep));
    assert_eq!(nodes.control(2).decide(announce(1), PATIENCE).unwrap(), Outcome::Changed);
    eventually("all have it", || (1..=3).all(|node| announced(&nodes, node) == ["name-1"]));
}

use super::*;
use crate::replica::decisions::Command;
use crate::units::Epoch;

const PRIMARY: Member = Member { node: NodeId(1), incarnation: Incarnation(10) };
const OTHER: Member = Member { node: NodeId(2), incarnation: Incarnation(20) };

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn position(lsn: u64) -> Position {
    Position { epoch: Epoch { generation: 0, number: 1 }, lsn: Lsn(lsn) }
}

fn both_in_sync() -> Record {
    let mut record = Record::of(PRIMARY);
    assert!(record.change(&Change::In(OTHER)));
    record
}

/// A node at its start, which knows a record.
fn role(own: Member, record: Record, now: Duration) -> Role {
    let nodes = vec![PRIMARY.node, OTHER.node];
    Role::new(own, nodes, record, position(7), now, Timing::default(), PlantedFaults::default())
}

/// Ticks every ten milliseconds; all that is to be done.
fn ticks(role: &mut Role, from: u64, to: u64) -> Vec<Action> {
    (from..to).step_by(10).flat_map(|now| role.handle(at(now), Input::Tick)).collect()
}

fn asks_for(actions: &[Action], change: impl Fn(&Change) -> bool) -> bool {
    actions.iter().any(|it| matches!(it, Action::Propose(Command { change: asked, .. }) if change(asked)))
}

fn beats(actions: &[Action]) -> bool {
    actions.iter().any(|it| matches!(it, Action::Send(_, Message::Heartbeat { .. })))
}

#[test]
fn p7_a_term_that_cannot_begin_puts_nobody_out_and_is_left_to_another_member() {
    let (mut giver, mut target) = (role(PRIMARY, both_in_sync(), at(0)), role(OTHER, both_in_sync(), at(0)));
    let mut record = both_in_sync();
    assert!(record.change(&Change::HandOver { target: OTHER, at: Lsn(7) }));
    let epoch = record.epoch;
    giver.handle(at(1000), Input::Decided(record.clone()));
    let begun = target.handle(at(1000), Input::Decided(record.clone()));
    assert!(begun.contains(&Action::Begin(epoch)), "{begun:?}");
    // As long as it tries, it says that it lives, and asks for nothing.
    let tried = ticks(&mut target, 1010, 8000);
    assert!(beats(&tried) && !asks_for(&tried, |_| true), "{tried:?}");
    let left = target.handle(at(8000), Input::CannotBegin(epoch));
    assert!(left.contains(&Action::Stop(epoch)) && !target.leads(), "{left:?}");
    let after = ticks(&mut target, 8010, 12_000);
    assert!(after.is_empty(), "{after:?}");
    // The other one hears nothing any more.
    giver.handle(at(8000), Input::Heard(OTHER.node, Message::Heartbeat { epoch, sent_at: at(8000) }));
    let asked = ticks(&mut giver, 8010, 9000);
    assert!(asks_for(&asked, |change| *change == Change::Promote(PRIMARY)), "{asked:?}");
    // Where nobody takes over, it tries once more.
    let again = ticks(&mut target, 12_000, 14_000);
    assert!(again.contains(&Action::Begin(epoch)), "{again:?}");
    target.handle(at(14_000), Input::Begun(epoch));
    assert_eq!(target.serves(), Some(epoch));
    let silent = ticks(&mut target, 14_010, 15_000);
    assert!(asks_for(&silent, |change| *change == Change::Out(PRIMARY.node)), "it serves now: {silent:?}");
    target.handle(at(15_000), Input::CannotBegin(epoch));
    assert_eq!(target.serves(), Some(epoch), "what has begun is not given up");
}

#[test]
fn a_term_of_a_node_alone_is_tried_until_it_begins() {
    let mut alone = role(PRIMARY, Record::of(PRIMARY), at(0));
    let epoch = Record::of(PRIMARY).epoch;
    assert!(alone.handle(at(0), Input::Tick).contains(&Action::Begin(epoch)));
    assert!(!alone.handle(at(100), Input::CannotBegin(epoch)).contains(&Action::Stop(epoch)));
    assert!(alone.leads());
}

#[test]
fn p7_a_chosen_node_that_is_compared_is_not_heard_and_so_replaced() {
    let mut target = role(OTHER, both_in_sync(), at(0));
    target.set_compared(true);
    let mut record = both_in_sync();
    assert!(record.change(&Change::HandOver { target: OTHER, at: Lsn(7) }));
    target.handle(at(1000), Input::Decided(record));
    let after = ticks(&mut target, 1010, 3000);
    assert!(after.is_empty(), "{after:?}");
}

#[test]
fn p7_a_node_that_is_removed_while_it_is_taken_in_is_waited_for_no_more() {
    let mut primary = role(PRIMARY, Record::of(PRIMARY), at(0));
    let epoch = Record::of(PRIMARY).epoch;
    primary.handle(at(0), Input::Tick);
    primary.handle(at(0), Input::Begun(epoch));
    let heard = Message::Heard { epoch, sent_at: at(0), by: OTHER };
    primary.handle(at(10), Input::Heard(OTHER.node, heard));
    let applied = Input::Applied { by: OTHER, epoch, applied: Lsn(7), durable: Lsn(7) };
    primary.handle(at(10), applied);
    let asked = primary.handle(at(20), Input::CaughtUp(OTHER));
    assert!(asks_for(&asked, |change| *change == Change::In(OTHER)), "{asked:?}");
    primary.handle(at(30), Input::Moved(position(9)));
    assert_eq!(primary.acknowledged(), Some(Lsn(7)), "it may be decided");
    primary.know(vec![PRIMARY.node]);
    assert_eq!(primary.acknowledged(), Some(Lsn(9)));
    let after = ticks(&mut primary, 1000, 3000);
    assert!(!asks_for(&after, |_| true), "{after:?}");
}

/// A node that the set names in its life before this one.
fn reborn(member: Member) -> Member {
    Member { incarnation: Incarnation(member.incarnation.0 + 1), ..member }
}

#[test]
fn p7_a_node_that_has_gone_again_is_not_started_from() {
    let mut survivor = role(reborn(PRIMARY), both_in_sync(), at(0));
    let (version, gone) = (both_in_sync().version, reborn(OTHER));
    let says = |lsn| {
        let stands = Message::Stands { version, by: gone, position: position(lsn) };
        Input::Heard(gone.node, stands)
    };
    // It is ahead, and says so again and again.
    for now in (1000..3000).step_by(200) {
        survivor.handle(at(now), says(9));
        let asked = ticks(&mut survivor, now, now + 200);
        assert!(!asks_for(&asked, |_| true), "{asked:?}");
        let reports = survivor.reports(at(now + 190));
        assert_eq!(reports.get(&gone.node), Some(&(gone.incarnation, position(9))));
        assert!(reports.contains_key(&PRIMARY.node) || now < 1200, "{reports:?}");
    }
    let silent = ticks(&mut survivor, 3000, 4000);
    assert!(!asks_for(&silent, |_| true), "what it held is not given up by itself: {silent:?}");
    let reports = survivor.reports(at(4000));
    let own = (reborn(PRIMARY).incarnation, position(7));
    assert_eq!(reports, BTreeMap::from([(PRIMARY.node, own)]));
    // It comes back behind the other one, and goes once more: the array starts by itself.
    survivor.handle(at(4000), says(5));
    let started = ticks(&mut survivor, 4800, 5300);
    let by_itself =
        |change: &Change| matches!(change, Change::Start { primary, .. } if *primary == reborn(PRIMARY));
    assert!(asks_for(&started, by_itself), "{started:?}");
}

#[test]
fn p7_a_term_ends_before_the_same_node_begins_another_one() {
    let mut primary = role(PRIMARY, Record::of(PRIMARY), at(0));
    let mut record = Record::of(PRIMARY);
    let former = record.epoch;
    assert!(primary.handle(at(0), Input::Tick).contains(&Action::Begin(former)));
    primary.handle(at(0), Input::Begun(former));
    // It was forced to be what it is.
    assert!(record.force(PRIMARY));
    let changes = |actions: Vec<Action>| -> Vec<Action> {
        let is_change = |it: &Action| matches!(it, Action::Begin(_) | Action::Stop(_));
        actions.into_iter().filter(is_change).collect()
    };
    let forced = primary.handle(at(1000), Input::Decided(record.clone()));
    assert_eq!(changes(forced), [Action::Stop(former), Action::Begin(record.epoch)]);
    assert!(changes(ticks(&mut primary, 1010, 2000)).is_empty(), "and no more");
    // It has heard of a third one before it is told.
    let second = record.epoch;
    assert!(record.force(PRIMARY));
    assert!(primary.accepts(record.epoch));
    let forced = primary.handle(at(2000), Input::Decided(record.clone()));
    assert_eq!(changes(forced), [Action::Stop(second), Action::Begin(record.epoch)]);
}

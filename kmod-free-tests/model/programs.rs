//! Random programs.

use proptest::collection::btree_map;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::Content;
use crate::world::Name;
use crate::world::Step;
use crate::world::World;

fn name() -> impl Strategy<Value = Name> {
    0u8..4
}

/// In bytes; now and then zero or no whole number of blocks.
fn size() -> impl Strategy<Value = u32> {
    prop_oneof![4 => (1u32..40).prop_map(|blocks| blocks * 4096), 1 => 0u32..100_000]
}

/// Offset and length; now and then past the end of most volumes.
fn range() -> impl Strategy<Value = (u32, u32)> {
    let at = prop_oneof![2 => (0u32..32).prop_map(|block| block * 4096), 2 => 0u32..100_000];
    let len = prop_oneof![
        2 => (1u32..12).prop_map(|blocks| blocks * 4096),
        2 => 0u32..600,
        2 => 4000u32..4200,
        2 => 0u32..50_000,
    ];
    (at, len)
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => (0u8..4).prop_map(Content::Random),
        1 => any::<[u8; 4]>().prop_map(Content::Pattern),
        1 => Just(Content::Zeros),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let tags = btree_map("[a-z]{1,4}", "\\PC{0,8}", 0..4);
    prop_oneof![
        8 => (name(), size()).prop_map(|(name, size)| Step::Create { name, size }),
        2 => (name(), any::<bool>()).prop_map(|(name, force)| Step::Delete { name, force }),
        2 => (name(), name()).prop_map(|(name, to)| Step::Rename { name, to }),
        1 => (name(), "\\PC{0,40}", tags)
            .prop_map(|(name, description, tags)| Step::Describe { name, description, tags }),
        3 => (name(), size()).prop_map(|(name, size)| Step::Resize { name, size }),
        3 => name().prop_map(|name| Step::Connect { name }),
        2 => name().prop_map(|name| Step::Disconnect { name }),
        24 => (name(), range(), content())
            .prop_map(|(name, (at, len), content)| Step::Write { name, at, len, content }),
        8 => (name(), vec((range(), content()), 0..12)).prop_map(|(name, writes)| Step::WriteTogether {
            name,
            writes: writes.into_iter().map(|((at, len), content)| (at, len, content)).collect(),
        }),
        6 => (name(), range()).prop_map(|(name, (at, len))| Step::Zero { name, at, len }),
        6 => (name(), range()).prop_map(|(name, (at, len))| Step::Trim { name, at, len }),
        8 => (name(), range()).prop_map(|(name, (at, len))| Step::Read { name, at, len }),
        8 => (name(), range(), 0u8..5)
            .prop_map(|(name, (at, len), extents_max)| Step::Status { name, at, len, extents_max }),
        2 => name().prop_map(|name| Step::Flush { name }),
        2 => Just(Step::Background),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_array_answers_as_plain_maps_do(seed in any::<u64>(), program in vec(step(), 1..120)) {
        let mut world = World::new(seed);
        for step in &program {
            world.step(step);
        }
        world.check_all();
        world.check_used();
        world.step(&Step::Reload);
    }
}

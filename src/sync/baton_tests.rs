use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as PlainMutex};
use std::time::Duration;

use super::*;
use crate::sync::{Condition, Mutex, yield_point};

/// Who took which step, in the order in which it happened.
fn order_of(seed: u64) -> Vec<(usize, usize)> {
    let order = PlainMutex::new(Vec::new());
    let inside = AtomicUsize::new(0);
    let threads = (0..4)
        .map(|index| {
            let (order, inside) = (&order, &inside);
            Box::new(move || {
                for step in 0..50 {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two threads ran at once");
                    order.lock().unwrap().push((index, step));
                    // Gives a thread that ought not to run the time to be seen.
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    yield_point();
                }
            }) as Simulated<'_>
        })
        .collect();
    run_threads(seed, threads);
    order.into_inner().unwrap()
}

#[test]
fn one_seed_is_one_schedule() {
    for seed in 0..30 {
        let first = order_of(seed);
        assert_eq!(first.len(), 200);
        assert_eq!(first, order_of(seed), "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_schedules() {
    let mut schedules: Vec<_> = (0..30).map(order_of).collect();
    schedules.sort();
    schedules.dedup();
    assert_eq!(schedules.len(), 30);
}

/// Loses an update unless the schedule happens to keep two threads apart.
fn racing_sum(seed: u64) -> usize {
    let sum = AtomicUsize::new(0);
    let add = || {
        for _ in 0..20 {
            let seen = sum.load(Ordering::SeqCst);
            yield_point();
            sum.store(seen + 1, Ordering::SeqCst);
        }
    };
    run_threads(seed, vec![Box::new(add), Box::new(add)]);
    sum.into_inner()
}

#[test]
fn a_race_shows_and_shows_alike() {
    let sums: Vec<_> = (0..20).map(racing_sum).collect();
    assert!(sums.iter().any(|sum| *sum < 40), "{sums:?}");
    assert_eq!(sums, (0..20).map(racing_sum).collect::<Vec<_>>());
}

#[test]
fn locks_exclude_and_conditions_wake() {
    for seed in 0..50 {
        let queue = Mutex::new(Vec::new());
        let changed = Condition::new();
        let produce = || {
            for item in 0..20u32 {
                queue.lock().push(item);
                changed.notify_all();
            }
        };
        let consume = || {
            let mut taken = 0;
            while taken < 20 {
                let mut items = queue.lock();
                while items.is_empty() {
                    items = if taken % 2 == 0 {
                        changed.wait(items)
                    } else {
                        changed.wait_for(items, Duration::from_secs(3_600))
                    };
                }
                let before = items.len();
                yield_point();
                assert_eq!(items.len(), before, "the lock was held");
                taken += 1;
                items.pop();
            }
        };
        run_threads(seed, vec![Box::new(consume), Box::new(produce), Box::new(consume), Box::new(produce)]);
        assert!(queue.into_inner().is_empty());
    }
}

fn panic_text(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("it has to panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast_ref::<&str>().expect("a text")).to_owned(),
    }
}

#[test]
fn a_livelock_is_a_panic_that_names_the_seed() {
    let never = AtomicBool::new(false);
    let text = panic_text(|| {
        let wait = || {
            while !never.load(Ordering::SeqCst) {
                yield_point();
            }
        };
        run_threads_within(4_711, 10_000, vec![Box::new(wait), Box::new(wait)]);
    });
    assert!(text.contains("seed 4711"), "{text}");
}

#[test]
fn a_panic_ends_all_and_comes_out() {
    for seed in 0..20 {
        let shared = Arc::new(Mutex::new(0));
        let never = Condition::new();
        let text = panic_text(|| {
            let fail = || {
                yield_point();
                panic!("thread failed on purpose");
            };
            // Holds a lock while it waits, and takes it again while it is unwound.
            struct LockOnDrop(Arc<Mutex<i32>>);
            impl Drop for LockOnDrop {
                fn drop(&mut self) {
                    *self.0.lock() += 1;
                }
            }
            let wait = || {
                let _last = LockOnDrop(Arc::clone(&shared));
                let mut guard = shared.lock();
                loop {
                    guard = never.wait(guard);
                }
            };
            run_threads(seed, vec![Box::new(wait), Box::new(fail), Box::new(wait)]);
        });
        assert_eq!(text, "thread failed on purpose");
        assert!(*shared.lock() <= 2);
    }
}

#[test]
fn nothing_to_run_is_no_panic() {
    run_threads(1, Vec::new());
    run_threads(1, vec![Box::new(|| {})]);
}

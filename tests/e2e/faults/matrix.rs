//! Many cases, several at a time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::case::{Fault, World};
use super::scenarios::Scenario;

/// How long a test takes new cases, unless it takes all.
const BUDGET: Duration = Duration::from_secs(12);

/// A verb and what it meets.
pub type Case = (&'static Scenario, Fault);

/// Numbers by chance, for an order of cases: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let other = self.next() % (end as u64 + 1);
            list.swap(end, other as usize);
        }
    }
}

/// `$RVM_TEST_SEED`, or the day: all cases have their turn over days.
fn seed() -> u64 {
    let given = std::env::var("RVM_TEST_SEED").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs() / 86400
    })
}

/// Runs cases in an order by chance, and fails with a line for each that went wrong.
pub fn run(name: &str, begin: fn() -> Option<World>, mut cases: Vec<Case>) {
    let wanted = std::env::var("RVM_TEST_FAULTS").unwrap_or_default();
    cases.retain(|(scenario, fault)| format!("{}, {fault}", scenario.name).contains(&wanted));
    run_each(name, cases, begin, |world, (scenario, fault)| {
        let wrong = world.case(scenario, fault);
        if wrong.is_empty() {
            return (Some(world), None);
        }
        world.give_up();
        let line = format!("{}, {fault}: {}", scenario.name, wrong.join("; "));
        (begin(), Some(line))
    });
}

/// The same for any cases. A worker has something that `begin` makes and each case passes on; none
/// ends the worker.
pub fn run_each<C: Send, S>(
    name: &str,
    mut cases: Vec<C>,
    begin: impl Fn() -> Option<S> + Sync,
    one: impl Fn(S, &C) -> (Option<S>, Option<String>) + Sync,
) {
    let (all, seed) = (cases.len(), seed());
    Chance(seed).shuffle(&mut cases);
    let queue = Mutex::new(VecDeque::from(cases));
    let (failures, count) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let start = Instant::now();
    let work = || {
        let mut held = begin();
        while rvm_tests::long() || start.elapsed() < BUDGET {
            let next = queue.lock().unwrap().pop_front();
            let (Some(now), Some(case)) = (held.take(), next) else {
                return;
            };
            let (kept, wrong) = one(now, &case);
            held = kept;
            if let Some(line) = wrong {
                println!("FAULT {}", line.replace('\n', " / "));
                failures.lock().unwrap().push(line);
            }
            let done = count.fetch_add(1, Ordering::Relaxed) + 1;
            if done % 250 == 0 {
                println!("{name}: {done} of {all} cases, {:.0?}", start.elapsed());
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| _ = scope.spawn(work)));
    let failures = failures.into_inner().unwrap();
    println!(
        "{name}: {} of {all} cases, {} failed, {:.0?}; RVM_TEST_SEED={seed}",
        count.into_inner(),
        failures.len(),
        start.elapsed()
    );
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

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
pub fn run(name: &str, mut cases: Vec<Case>) {
    let all = cases.len();
    let seed = seed();
    Chance(seed).shuffle(&mut cases);
    let queue = Mutex::new(VecDeque::from(cases));
    let (failures, count) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let start = Instant::now();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut world = World::played();
                while rvm_tests::long() || start.elapsed() < BUDGET {
                    let (Some(now), Some(case)) = (world.take(), queue.lock().unwrap().pop_front())
                    else {
                        return;
                    };
                    world = one(now, &case, &failures);
                    let done = count.fetch_add(1, Ordering::Relaxed) + 1;
                    if done % 250 == 0 {
                        println!("{name}: {done} of {all} cases, {:.0?}", start.elapsed());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!(
        "{name}: {} of {all} cases, {} failed, {:.0?}; RVM_TEST_SEED={seed}",
        count.into_inner(),
        failures.len(),
        start.elapsed()
    );
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// Runs a case; returns the world for the next one.
fn one(world: World, (scenario, fault): &Case, failures: &Mutex<Vec<String>>) -> Option<World> {
    let wrong = world.case(scenario, fault);
    if wrong.is_empty() {
        return Some(world);
    }
    let line = format!("{}, {fault}: {}", scenario.name, wrong.join("; "));
    println!("FAULT {}", line.replace('\n', " / "));
    failures.lock().unwrap().push(line);
    world.give_up();
    World::played()
}

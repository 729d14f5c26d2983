//! Faults of system calls: each call of each process, with each error that it can have.

use rvm_tests::inject::{CALLS, Order};

use super::case::{Fault, World};
use super::matrix::{self, Case};
use super::scenarios::{SCENARIOS, Scenario};

/// What the processes of a scenario call, as cases.
fn cases(world: &World, scenario: &'static Scenario) -> Vec<Case> {
    let (wrong, counts) = world.counted(scenario, &Fault::Counted);
    assert!(wrong.is_empty(), "{}: {wrong:#?}", scenario.name);
    let mut cases = Vec::new();
    for ((role, call), count) in counts {
        let errors = CALLS
            .iter()
            .find(|known| known.name == call)
            .unwrap()
            .errors;
        for passage in 1..=count {
            cases.extend(errors.iter().map(|error| {
                let order = Order {
                    role: role.clone(),
                    call,
                    passage,
                    error: *error,
                };
                (scenario, Fault::Call(order))
            }));
        }
    }
    cases
}

#[test]
fn a_system_call_that_fails_is_told_and_leaves_nothing() {
    let Some(world) = World::played() else {
        return;
    };
    let all = SCENARIOS
        .iter()
        .flat_map(|scenario| cases(&world, scenario));
    let all = all.collect();
    drop(world);
    matrix::run("system calls", World::played, all);
}

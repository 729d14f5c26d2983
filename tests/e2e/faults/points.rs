//! Faults at the named points of the code (`rvm_sys::fault_point`). They need binaries that have
//! the points: `scripts/test faults` makes an installation of them, which `$RVM_DIST` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::case::{Fault, World};
use super::matrix;
use super::scenarios::{SCENARIOS, Scenario};

/// What happens at a point. A delay is what a slow disk is.
pub const ACTIONS: [&str; 8] = [
    "kill",
    "delay:700",
    "error:ENOSPC",
    "error:EMFILE",
    "error:ENOMEM",
    "error:EIO",
    "error:EINTR",
    "error:EAGAIN",
];

/// How many passages of a point in one process are faulted, of those that come first.
const PASSAGES: u32 = 4;

/// Whether the installation has the points, by a text that is in such binaries alone.
pub fn has_points() -> bool {
    let program = fs::read(rvm_tests::dist().join("bin/rvm")).unwrap();
    let has = has_text(&program, "RVM_FAULTS");
    if !has {
        println!("skipped: the installation has no fault points; scripts/test faults makes one");
    }
    has
}

/// The points that a scenario passes: how often, by `ROLE@POINT`.
fn passed(world: &World, scenario: &'static Scenario) -> BTreeMap<String, u32> {
    let log = world.rvm.path("points");
    let _ = fs::remove_file(&log);
    let rule = Fault::Logged(log.clone());
    let wrong = world.case(scenario, &rule);
    assert!(wrong.is_empty(), "{}: {wrong:#?}", scenario.name);
    let mut passed = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        *passed.entry(line.to_owned()).or_default() += 1;
    }
    passed
}

/// The points that a part of the matrix passes.
pub fn listed(part: &str) -> BTreeSet<String> {
    let lines = include_str!("points.txt").lines();
    let words = lines.filter_map(|line| line.split_once(' '));
    let of_part = words.filter(|(_, of)| of.trim() == part);
    of_part.map(|(name, _)| name.to_owned()).collect()
}

/// Looks at the installation that `make build` has made, whatever `$RVM_DIST` says.
#[test]
fn no_shipped_program_has_fault_points() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    if !dist.exists() {
        return println!("skipped: there is no dist; make build makes it");
    }
    for name in [
        "bin/rvm",
        "bin/containerd-shim-rvm-v2",
        "libexec/rvm/rvm-vmm",
    ] {
        let program = fs::read(dist.join(name)).unwrap();
        for text in ["RVM_FAULTS", "state.write", "vmm.jailed", "shim.claimed"] {
            assert!(!has_text(&program, text), "{name} has {text}");
        }
    }
}

fn has_text(program: &[u8], text: &str) -> bool {
    program
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[test]
fn a_process_that_dies_or_fails_or_waits_at_a_point_leaves_nothing() {
    if !has_points() {
        return;
    }
    let Some(world) = World::played() else {
        return;
    };
    let mut cases = Vec::new();
    let mut points = BTreeSet::new();
    for scenario in SCENARIOS {
        for (place, count) in passed(&world, scenario) {
            points.insert(place.split('@').nth(1).unwrap_or_default().to_owned());
            for passage in 1..=count.min(PASSAGES) {
                let rules = ACTIONS.map(|action| format!("{place}#{passage}={action}"));
                cases.extend(rules.map(|rule| (scenario, Fault::Point(rule))));
            }
        }
    }
    println!("{} points are passed", points.len());
    assert_eq!(
        listed("rvm").difference(&points).next(),
        None,
        "never passed"
    );
    drop(world);
    matrix::run("points", World::played, cases);
}

/// Machines of the engine under test, whose processes pass points of their own.
#[test]
fn a_process_of_a_machine_that_dies_or_fails_or_waits_at_a_point_leaves_nothing() {
    if !has_points() {
        return;
    }
    let Some(world) = World::real() else {
        return;
    };
    let names: &[&str] = match rvm_tests::engine().as_str() {
        "kvm" => &["run", "checkpoints", "restore"],
        _ => &["run"],
    };
    let mut cases = Vec::new();
    for scenario in SCENARIOS.iter().filter(|one| names.contains(&one.name)) {
        let passed = passed(&world, scenario).into_keys();
        for place in passed.filter(|place| place.starts_with("rvm-vmm ")) {
            let rules = ACTIONS.map(|action| format!("{place}#1={action}"));
            cases.extend(rules.map(|rule| (scenario, Fault::Point(rule))));
        }
    }
    assert!(!cases.is_empty(), "a machine passes no point");
    drop(world);
    matrix::run("points of machines", World::real, cases);
}

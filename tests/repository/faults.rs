//! The named points at which tests have processes fail, wait or die.

use std::collections::BTreeMap;

use crate::files;

const LIST: &str = "tests/e2e/faults/points.txt";

/// Points that the list lacks, that the code lacks, and names that two points have.
pub fn misnamed_points() -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for krate in ["sandbox", "shim", "vmm", "runtime-cli"] {
        for file in files::below(&format!("{krate}/src")) {
            for name in points(&file.text) {
                places.entry(name).or_default().push(file.path.clone());
            }
        }
    }
    let list = std::fs::read_to_string(files::root().join(LIST)).unwrap();
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<&str> = lines
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut found = Vec::new();
    for (name, places) in &places {
        if !listed.contains(&name.as_str()) {
            found.push(format!("{}: {name} is not in {LIST}", places[0]));
        }
        if places.len() > 1 {
            found.push(format!("{}: {name} is a point elsewhere", places[1]));
        }
    }
    let stale = listed.iter().filter(|name| !places.contains_key(**name));
    found.extend(stale.map(|name| format!("{LIST}: no code has {name}")));
    found
}

fn points(text: &str) -> Vec<String> {
    let calls = text.split("fault_point!(").skip(1);
    let names = calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    names.map(str::to_owned).collect()
}

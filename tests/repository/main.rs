//! Rules that hold for the repository as a whole. They read the sources and start nothing: no root,
//! no network, no virtual machine.

mod arrows;
mod documents;
mod faults;
mod files;
mod rust;
mod size;

/// Fails with one line for each breach of a rule.
#[track_caller]
fn assert_none(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn rooms_of_sandbox_use_only_rooms_below_them() {
    assert_none(&arrows::pointing_up("sandbox"));
}

#[test]
fn rooms_of_vmm_use_only_rooms_below_them() {
    assert_none(&arrows::pointing_up("vmm"));
}

#[test]
fn rooms_of_agent_use_only_rooms_below_them() {
    assert_none(&arrows::pointing_up("agent"));
}

#[test]
fn rooms_of_shim_use_only_rooms_below_them() {
    assert_none(&arrows::pointing_up("shim"));
}

#[test]
fn fault_points_are_listed_once_each() {
    assert_none(&faults::misnamed_points());
}

#[test]
fn comments_and_prose_are_at_most_100_columns_wide() {
    assert_none(&size::wide_lines());
}

#[test]
fn source_files_have_at_most_500_lines() {
    assert_none(&size::long_files());
}

#[test]
fn functions_have_at_most_60_lines_unless_they_are_lists() {
    assert_none(&size::long_functions());
}

#[test]
fn files_tests_and_headings_that_documents_name_exist() {
    assert_none(&documents::dangling_names());
}

#[test]
fn readmes_of_crates_list_every_room() {
    let crates = [
        "protocol",
        "sys",
        "vmm",
        "agent",
        "sandbox",
        "shim",
        "runtime-cli",
        "tests",
    ];
    let unlisted = crates
        .iter()
        .flat_map(|name| documents::unlisted_rooms(name));
    assert_none(&unlisted.collect::<Vec<_>>());
}

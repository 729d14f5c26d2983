//! Containers with disks. What a disk holds is the user's.

use std::fs;
use std::path::Path;

use rvm_tests::command::finish;
use rvm_tests::{Bundle, Rvm, disk};
use serde_json::json;

use super::{
    COUNT, ROUNDS, count_through, end, numbers, restore, save, start, wait_for_more, world,
};

const MIB: u64 = 1 << 20;

/// Counts to standard output and to a file on the disk, which is written in part.
const COUNT_ON_DISK: &str = "i=0; while :; do i=$((i+1)); echo $i >>/data/lines; echo $i; \
                             sleep 0.05; done";

fn with_disk(script: &str, kind: &str, image: &Path, options: &[&str]) -> Bundle {
    let bundle = Bundle::shell(script);
    // A restored container has the mounts that it had, and their mount points.
    fs::create_dir(bundle.rootfs("data")).unwrap();
    bundle.mount(json!({
        "destination": "/data", "type": kind, "source": image, "options": options,
    }))
}

fn refused(rvm: &Rvm, bundle: &Bundle, image: &Path, words: &str) {
    let mut restore = rvm.command(&["restore", "--image-path"]);
    restore
        .arg(image)
        .arg("--bundle")
        .arg(bundle.write())
        .arg("box");
    let finished = finish(restore);
    assert_ne!(finished.code, 0, "{words}");
    assert!(finished.stderr.contains(words), "{}", finished.stderr);
}

#[test]
fn a_disk_goes_on_with_its_container_or_a_copy_of_it_does() {
    let Some(rvm) = world() else { return };
    let Some(image) = disk::image(&rvm.path(""), "ext4", 32 * MIB, None) else {
        return;
    };
    let bundle = with_disk(COUNT_ON_DISK, "ext4", &image, &[]);
    let (first, second) = (rvm.path("first"), rvm.path("second"));
    let output = start(&rvm, &bundle, "box");
    wait_for_more(&output, 2);
    let mut all = numbers(&output);
    let refused_to_go_on = rvm.call(&["checkpoint", "--leave-running", "box"]);
    let words = &refused_to_go_on.stderr;
    assert!(words.contains("a disk that it can write to"), "{words}");
    save(&rvm, "box", &first, &[]);
    all.extend(&numbers(&output)[all.len()..]);

    let output = restore(&rvm, &bundle, &first, "box");
    wait_for_more(&output, 2);
    // What is in the guest's memory alone has not changed the image.
    rvm.ok(&["exec", "box", "sync"]);
    save(&rvm, "box", &second, &[]);
    all.extend(numbers(&output));
    assert!(all.iter().copied().eq(1..=all.len() as u64), "{all:?}");
    refused(&rvm, &bundle, &first, "written to since");

    let copy = rvm.path("copy.img");
    fs::copy(&image, &copy).unwrap();
    for (disk, id) in [(&copy, "fork"), (&image, "box")] {
        let bundle = with_disk(COUNT_ON_DISK, "ext4", disk, &[]);
        let output = restore(&rvm, &bundle, &second, id);
        wait_for_more(&output, 2);
        let lines = rvm.ok(&["exec", id, "cat", "/data/lines"]);
        let lines: Vec<u64> = lines.lines().map(|line| line.parse().unwrap()).collect();
        assert!(lines.len() > all.len());
        assert!(
            lines.iter().copied().eq(1..=lines.len() as u64),
            "{lines:?}"
        );
        end(&rvm, id);
        disk::assert_ext4_is_clean(disk);
    }
    refused(&rvm, &bundle, &second, "written to since");
}

#[test]
fn a_disk_that_is_another_one_is_refused_with_its_path() {
    let Some(rvm) = world() else { return };
    let Some(image) = disk::image(&rvm.path(""), "ext4", 16 * MIB, None) else {
        return;
    };
    let saved = rvm.path("image");
    start(&rvm, &with_disk("sleep 1000", "ext4", &image, &[]), "box");
    save(&rvm, "box", &saved, &[]);
    let none = Bundle::shell("sleep 1000");
    refused(
        &rvm,
        &none,
        &saved,
        "has 1 disks in its checkpoint, and 0 in",
    );
    let read_only = with_disk("sleep 1000", "ext4", &image, &["ro"]);
    refused(&rvm, &read_only, &saved, "can be written to");
    let larger = rvm.path("larger.img");
    fs::copy(&image, &larger).unwrap();
    let file = fs::File::options().write(true).open(&larger).unwrap();
    file.set_len(17 * MIB).unwrap();
    let other = with_disk("sleep 1000", "ext4", &larger, &[]);
    refused(&rvm, &other, &saved, "larger.img: device slot 6");
    refused(&rvm, &other, &saved, "it has 17825792 bytes");
    assert_eq!(rvm.ok(&["list", "--quiet"]), "");
}

#[test]
fn a_root_on_a_disk_goes_on_with_a_file_that_was_removed() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let root = bundle.rootfs("");
    let Some(image) = disk::image(bundle.path(), "ext4", 64 * MIB, Some(&root)) else {
        return;
    };
    let bundle = bundle.with(|config| config["root"]["path"] = json!(image));
    let (output, before) = count_through(&rvm, &bundle, ROUNDS);
    wait_for_more(&output, 0);
    let kept = rvm.ok(&["exec", "box", "cat", "/proc/1/fd/5"]);
    let kept: Vec<u64> = kept.lines().map(|line| line.parse().unwrap()).collect();
    assert!(kept.len() > before);
    assert!(kept.iter().copied().eq(1..=kept.len() as u64), "{kept:?}");
    end(&rvm, "box");
}

#[test]
fn containers_that_only_read_a_disk_are_left_running_and_share_it() {
    let Some(rvm) = world() else { return };
    let content = tempfile::tempdir().unwrap();
    fs::write(content.path().join("file"), "content").unwrap();
    let content = Some(content.path());
    let Some(image) = disk::image(&rvm.path(""), "erofs", 8 * MIB, content) else {
        return;
    };
    let script = "exec 5</data/file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let bundle = with_disk(script, "erofs", &image, &[]);
    let saved = rvm.path("image");
    let output = start(&rvm, &bundle, "box");
    wait_for_more(&output, 0);
    save(&rvm, "box", &saved, &["--leave-running"]);
    let other = with_disk(script, "erofs", &image, &[]);
    let output = restore(&rvm, &other, &saved, "fork");
    wait_for_more(&output, 0);
    for id in ["box", "fork"] {
        assert_eq!(rvm.ok(&["exec", id, "cat", "/data/file"]), "content");
        end(&rvm, id);
    }
}

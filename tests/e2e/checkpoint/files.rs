//! Files that are in use.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rvm_tests::Bundle;
use rvm_tests::command::eventually;

use super::{end, restore, save, start, world};

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// One process has locks, another one waits for them, one watches a directory, and the shell has a
/// file open that was removed, with holes.
const IN_USE: &str = "cd /tmp; mkfifo p; exec 6<>p; \
    inside lock f <p >first & echo $! >pid; \
    until grep -q locked first; do sleep 0.1; done; \
    inside lock f <p >second & \
    until grep -q busy second; do sleep 0.1; done; \
    seq 1 300000 >big; dd if=big of=big bs=1M seek=20 count=1 conv=notrunc; exec 5<>big; rm big; \
    inside watch /tmp/watched >told & \
    until grep -q ready told; do sleep 0.1; done; touch ready; wait";

#[test]
fn locks_are_held_and_waited_for_and_a_removed_file_is_whole() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(IN_USE);
    fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
    fs::create_dir(bundle.rootfs("tmp/watched")).unwrap();
    fs::write(bundle.rootfs("tmp/f"), "").unwrap();
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    let text = |name: &str| fs::read_to_string(bundle.rootfs(name)).unwrap_or_default();
    eventually("all is in use", || bundle.rootfs("tmp/ready").exists());
    let sum = || rvm.ok(&["exec", "box", "md5sum", "/proc/1/fd/5"]);
    let before = sum();
    save(&rvm, "box", &image, &[]);
    let host = File::options().write(true).open(bundle.rootfs("tmp/f"));
    let host = host.unwrap();
    for lock in [flock, fcntl_lock] {
        lock(&host, FlockOperation::NonBlockingLockExclusive).unwrap();
        lock(&host, FlockOperation::Unlock).unwrap();
    }

    restore(&rvm, &bundle, &image, "box");
    for lock in [flock, fcntl_lock] {
        let tried = lock(&host, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(tried, Err(Errno::AGAIN));
    }
    assert_eq!(sum(), before);
    assert_eq!(text("tmp/second"), "busy\n");
    fs::write(bundle.rootfs("tmp/watched/new"), "").unwrap();
    eventually("the new file is told of", || {
        text("tmp/told").contains("new")
    });
    rvm.ok(&["exec", "box", "sh", "-c", "kill $(cat /tmp/pid)"]);
    eventually("the other process has the locks", || {
        text("tmp/second").contains("locked")
    });
    end(&rvm, "box");
}

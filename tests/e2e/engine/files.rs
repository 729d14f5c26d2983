//! Volumes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rvm_tests::command::eventually;

use crate::engine;

/// A directory on the host with a file in it.
struct Source(tempfile::TempDir);

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(engine().world().dir()).unwrap();
        fs::write(dir.path().join("file"), "from the host\n").unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An argument of --volume.
    fn volume(&self, name: &str, rest: &str) -> String {
        format!("{}:{rest}", self.path(name).display())
    }
}

#[test]
fn a_directory_is_read_and_written_through() {
    let source = Source::new();
    let volume = source.volume("", "/data");
    let script = "cat /data/file; echo from the guest > /data/new; chown 1000:2000 /data/new";
    assert_eq!(
        engine().shell(&["--volume", &volume], script),
        "from the host\n"
    );
    let new = source.path("new");
    assert_eq!(fs::read_to_string(&new).unwrap(), "from the guest\n");
    let meta = fs::metadata(&new).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 2000));
}

#[test]
fn a_file_is_a_volume_too_and_read_only_holds() {
    let source = Source::new();
    let file = source.volume("file", "/etc/one");
    let read_only = source.volume("", "/data:ro");
    let options = ["--volume", &file, "--volume", &read_only];
    let script = "echo more >> /etc/one; cat /etc/one; touch /data/x 2>&1";
    let finished = engine().run(&options, &["sh", "-c", script]);
    assert!(
        finished.stdout.starts_with("from the host\nmore\n"),
        "{finished:?}"
    );
    assert!(
        finished.stdout.contains("Read-only file system"),
        "{finished:?}"
    );
    assert_eq!(
        fs::read_to_string(source.path("file")).unwrap(),
        "from the host\nmore\n"
    );
}

#[test]
fn what_changes_on_either_side_is_seen_on_the_other() {
    let source = Source::new();
    let volume = source.volume("", "/data");
    let container = engine().start(&["--volume", &volume], &["sleep", "1000"]);
    assert_eq!(container.shell("cat /data/file"), "from the host\n");
    fs::write(source.path("file"), "changed, and longer\n").unwrap();
    assert_eq!(container.shell("cat /data/file"), "changed, and longer\n");
    container.shell("echo back > /data/file");
    assert_eq!(fs::read_to_string(source.path("file")).unwrap(), "back\n");
    fs::remove_file(source.path("file")).unwrap();
    // The guest keeps names for a second.
    eventually("the file is gone", || {
        container.exec(&[], &["test", "-e", "/data/file"]).code == 1
    });
}

#[test]
fn a_named_volume_outlives_its_container() {
    let volume = engine().name().name.clone() + "-volume";
    engine().ok(&["volume", "create", &volume]);
    let option = format!("{volume}:/data");
    engine().shell(&["--volume", &option], "echo kept > /data/file");
    assert_eq!(
        engine().shell(&["--volume", &option], "cat /data/file"),
        "kept\n"
    );
    engine().ok(&["volume", "rm", &volume]);
}

#[test]
fn a_new_volume_holds_what_the_image_has_there() {
    let text = engine().shell(&["--volume", "/var/www"], "cat /var/www/index.html");
    assert_eq!(text, "a page\n");
}

#[test]
fn a_mount_that_the_host_makes_later_appears() {
    let source = Source::new();
    let path = source.path("");
    let world = |program: &str, args: &[&str]| {
        let mut command = engine().world().command(program);
        assert!(
            command.args(args).status().unwrap().success(),
            "{program} {args:?}"
        );
    };
    let dir = path.to_str().unwrap().trim_end_matches('/');
    world("mount", &["--bind", dir, dir]);
    world("mount", &["--make-shared", dir]);
    let option = format!("{dir}:/data:rslave");
    let container = engine().start(&["--volume", &option], &["sleep", "1000"]);
    let inner = format!("{dir}/inner");
    fs::create_dir(&inner).unwrap();
    world("mount", &["-t", "tmpfs", "late", &inner]);
    world("touch", &[&format!("{inner}/late")]);
    eventually("the mount appears", || {
        container.shell("ls /data/inner") == "late\n"
    });
    // The file server has directories open that the guest has looked into.
    world("umount", &["--lazy", &inner]);
    eventually("the mount goes", || {
        container.shell("ls /data/inner").is_empty()
    });
    drop(container);
    world("umount", &[dir]);
}

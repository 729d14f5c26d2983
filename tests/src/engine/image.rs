//! An image with busybox, so that nothing is pulled.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes the image's root file system as an archive below `dir`.
pub fn archive(dir: &Path) -> PathBuf {
    let root = dir.join("image");
    for name in [
        "bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var/www",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("the tests need busybox-static; scripts/setup test installs it");
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for applet in list.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let files = [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/tmp:/bin/sh\n",
        ),
        (
            "etc/group",
            "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n",
        ),
        ("var/www/index.html", "a page\n"),
    ];
    for (path, text) in files {
        fs::write(root.join(path), text).unwrap();
    }
    let archive = dir.join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .args(["--owner=0", "--group=0", "."]);
    assert!(tar.status().unwrap().success());
    fs::remove_dir_all(root).unwrap();
    archive
}

use super::*;

struct Sandbox {
    dir: tempfile::TempDir,
    shared: PathBuf,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = prepare(dir.path()).unwrap();
        Self { dir, shared }
    }

    fn share(&self, source: &Path, change: impl FnOnce(&mut SharedMount)) -> PathBuf {
        let mut wanted = SharedMount::new(source.to_owned(), "c/mounts/0".into());
        wanted.recursive = true;
        change(&mut wanted);
        share(&self.shared, &wanted).unwrap();
        self.shared.join(wanted.place)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        remove(self.dir.path()).unwrap();
    }
}

fn mounts_below(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.matches(path.to_str().unwrap()).count()
}

fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "contents").unwrap();
    dir
}

#[test]
fn a_directory_is_shared_and_written_through() {
    let (sandbox, source) = (Sandbox::new(), source());
    let place = sandbox.share(source.path(), |_| {});
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "contents");
    fs::write(place.join("file"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(source.path().join("file")).unwrap(),
        "changed"
    );
}

#[test]
fn a_file_is_shared_as_a_file() {
    let (sandbox, source) = (Sandbox::new(), source());
    let place = sandbox.share(&source.path().join("file"), |_| {});
    assert_eq!(fs::read_to_string(place).unwrap(), "contents");
}

#[test]
fn the_largest_configuration_fits_for_every_container_of_a_pod() {
    let sandbox = Sandbox::new();
    let mut spec = Spec::default();
    spec.set_hostname(Some("a".repeat(2 << 20)));
    for id in ["c", "d", "e"] {
        fs::create_dir(sandbox.shared.join(id)).unwrap();
        write_bundle(&sandbox.shared, id, &spec).unwrap();
    }
}

#[test]
fn a_read_only_share_cannot_be_written() {
    let (sandbox, source) = (Sandbox::new(), source());
    let place = sandbox.share(source.path(), |wanted| wanted.read_only = Some(true));
    let error = fs::write(place.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_share_is_read_only_at_its_top_or_as_a_whole() {
    let (sandbox, source) = (Sandbox::new(), source());
    let inner = source.path().join("inner");
    fs::create_dir(&inner).unwrap();
    mount("rvm-test", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
    let place = sandbox.share(source.path(), |wanted| wanted.read_only = Some(true));
    assert!(fs::write(place.join("file"), "").is_err());
    fs::write(place.join("inner/file"), "a mount of its own").unwrap();
    let place = sandbox.share(source.path(), |wanted| {
        wanted.place = "c/mounts/1".into();
        wanted.all_read_only = Some(true);
    });
    let error = fs::write(place.join("inner/file"), "").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    fs::write(inner.join("file"), "the host's own mount is as it was").unwrap();
    unmount(&inner, UnmountFlags::DETACH).unwrap();
}

#[test]
fn removal_leaves_the_hosts_mounts_and_files_alone() {
    let source = source();
    let inner = source.path().join("inner");
    fs::create_dir(&inner).unwrap();
    mount("rvm-test", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
    propagate(&inner, MountPropagationFlags::SHARED).unwrap();
    fs::write(inner.join("kept"), "").unwrap();
    let dir = {
        let sandbox = Sandbox::new();
        let place = sandbox.share(source.path(), |wanted| wanted.follows_host = true);
        assert!(place.join("inner/kept").exists());
        sandbox.dir.path().to_owned()
    };
    assert_eq!(mounts_below(&dir), 0);
    assert!(
        inner.join("kept").exists(),
        "the host's mount is still there"
    );
    unmount(&inner, UnmountFlags::DETACH).unwrap();
}

#[test]
fn sockets_and_devices_are_refused_by_name() {
    let (sandbox, source) = (Sandbox::new(), source());
    let socket = source.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (socket.as_path(), "socket"),
        (Path::new("/dev/null"), "character"),
    ] {
        let wanted = SharedMount::new(path.to_owned(), "c/mounts/1".into());
        let error = share(&sandbox.shared, &wanted).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()));
        assert!(error.source.to_string().contains(kind), "{}", error.source);
    }
}

#[test]
fn the_files_of_one_container_are_removed_and_the_rest_stays() {
    let (sandbox, source) = (Sandbox::new(), source());
    let kept = sandbox.share(source.path(), |_| {});
    sandbox.share(source.path(), |wanted| wanted.place = "d/rootfs".into());
    sandbox.share(source.path(), |wanted| wanted.place = "d/mounts/0".into());
    sandbox.share(&source.path().join("file"), |wanted| {
        wanted.place = "d/mounts/1".into();
    });
    unshare(&sandbox.shared, "d").unwrap();
    unshare(&sandbox.shared, "d").unwrap();
    assert!(!sandbox.shared.join("d").exists());
    assert!(kept.join("file").exists() && source.path().join("file").exists());
}

#[test]
fn containers_of_a_pod_share_a_mount_until_the_last_is_gone() {
    let (sandbox, source) = (Sandbox::new(), source());
    let shared = |id: &str| {
        sandbox.share(source.path(), |wanted| share_in_pod(wanted, id));
        fs::read_dir(sandbox.shared.join(POD_MOUNTS))
            .unwrap()
            .count()
    };
    assert_eq!((shared("c"), shared("d")), (1, 1));
    let mounts = mounts_below(&sandbox.shared);
    unshare(&sandbox.shared, "c").unwrap();
    assert_eq!(mounts_below(&sandbox.shared), mounts);
    unshare(&sandbox.shared, "d").unwrap();
    assert_eq!(mounts_below(&sandbox.shared), mounts - 1);
    assert!(source.path().join("file").exists());
}

#[test]
fn removing_twice_or_without_preparing_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    remove(dir.path()).unwrap();
    prepare(dir.path()).unwrap();
    remove(dir.path()).unwrap();
    remove(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

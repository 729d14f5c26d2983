//! Descriptors that a process inherits beyond its standard streams.

use super::*;

#[test]
fn descriptors_are_preserved_as_streams() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let (input, mut to_guest) = std::io::pipe().unwrap();
    let (mut from_guest, output) = std::io::pipe().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let script = "cat <&3; echo out >&4; read line <&5; echo got $line >&5";
    let mut exec = rvm.command(&["exec", "--preserve-fds", "3", "box", "sh", "-c", script]);
    pass(&mut exec, vec![input.into(), output.into(), socket.into()]);
    let child = exec.spawn().unwrap();
    drop(exec);
    to_guest.write_all(b"in").unwrap();
    drop(to_guest);
    peer.write_all(b"question\n").unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "got question\n");
    let mut out = String::new();
    from_guest.read_to_string(&mut out).unwrap();
    assert_eq!(out, "out\n");
    assert!(command::wait(child).status.success());

    let directory = File::open("/").unwrap();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for (fd, why) in [
        (directory.into(), "descriptor 3 is a directory"),
        (memory, "descriptor 3 is a file without a name"),
    ] {
        let mut exec = rvm.command(&["exec", "--preserve-fds", "1", "box", "true"]);
        pass(&mut exec, vec![fd]);
        let refused = finish(exec);
        assert_eq!(refused.code, 255);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let refused = rvm.call(&["exec", "--preserve-fds", "1", "box", "true"]);
    assert!(
        refused.stderr.contains("descriptor 3"),
        "{}",
        refused.stderr
    );
    end(&rvm);
}

/// A script in the waiting container, with a file as its descriptor 3.
fn with_file(rvm: &Rvm, file: File, script: &str) -> Finished {
    let mut exec = rvm.command(&["exec", "--preserve-fds", "1", "box", "sh", "-c", script]);
    pass(&mut exec, vec![file.into()]);
    finish(exec)
}

#[test]
fn a_file_is_preserved_with_its_offset_and_its_flags() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let path = rvm.path("file");
    let text = || fs::read_to_string(&path).unwrap();

    fs::write(&path, "0123456789").unwrap();
    let mut both = File::options().read(true).write(true).open(&path).unwrap();
    both.seek(std::io::SeekFrom::Start(3)).unwrap();
    let done = with_file(&rvm, both, "dd bs=2 count=1 <&3 2>/dev/null; echo -n X >&3");
    assert_eq!((done.code, done.stdout.as_str()), (0, "34"), "{done:?}");
    assert_eq!(text(), "01234X6789");

    // The host appends while the container does.
    let append = || File::options().append(true).open(&path).unwrap();
    let script = "echo one >&3; read go </proc/self/fd/0; echo two >&3";
    let mut exec = rvm.command(&["exec", "--preserve-fds", "1", "box", "sh", "-c", script]);
    pass(&mut exec, vec![append().into()]);
    exec.stdin(Stdio::piped());
    let mut child = exec.spawn().unwrap();
    eventually("the container writes", || text().ends_with("one\n"));
    append().write_all(b"host\n").unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(command::wait(child).status.success());
    assert_eq!(text(), "01234X6789one\nhost\ntwo\n");

    let only = File::open(&path).unwrap();
    let script = "cat <&3; echo a >&3 || echo no; echo b >/proc/self/fd/3 || echo never";
    let done = with_file(&rvm, only, script);
    assert!(done.stdout.ends_with("two\nno\nnever\n"), "{done:?}");
    assert_eq!(text(), "01234X6789one\nhost\ntwo\n");

    let passed = rvm.root().join("box/shared/@passed");
    assert_eq!(
        fs::read_dir(passed).unwrap().count(),
        0,
        "all are taken away"
    );
    end(&rvm);
}

#[test]
fn a_file_is_preserved_for_a_container_too() {
    let rvm = Rvm::new();
    let path = rvm.path("file");
    let bundle = Bundle::shell("echo $(cat <&3) and more >&4");
    let mut run = rvm.command(&["run", "--preserve-fds", "2", "--bundle"]);
    run.arg(bundle.write()).arg("box");
    fs::write(&path, "some").unwrap();
    let appended = File::options().append(true).open(&path).unwrap();
    pass(
        &mut run,
        vec![File::open(&path).unwrap().into(), appended.into()],
    );
    let finished = finish(run);
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "somesome and more\n");
}

/// Gives a command these descriptors from 3 on.
fn pass(command: &mut Command, fds: Vec<OwnedFd>) {
    #[expect(unsafe_code, reason = "pre_exec and dup2")]
    // SAFETY: only system calls, in a child that is about to execute. The descriptors are first
    // moved out of the way, so that none is overwritten before it is copied.
    unsafe {
        command.pre_exec(move || {
            for (fd, number) in fds.iter().zip(100..) {
                libc::dup2(fd.as_raw_fd(), number);
            }
            for (_, number) in fds.iter().zip(0..) {
                libc::dup2(100 + number, 3 + number);
                libc::close(100 + number);
            }
            Ok(())
        });
    }
}

#[test]
fn descriptors_are_preserved_for_a_container_too() {
    let rvm = Rvm::new();
    let (mut from_guest, output) = std::io::pipe().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let script = "echo $LISTEN_FDS $LISTEN_PID >&4; echo hello >&3";
    let bundle = Bundle::shell(script);
    let mut run = rvm.command(&["run", "--preserve-fds", "1", "--bundle"]);
    run.arg(bundle.write()).arg("box");
    pass(&mut run, vec![socket.into(), output.into()]);
    #[expect(unsafe_code, reason = "pre_exec and setenv")]
    // SAFETY: the environment is that of a child about to execute, which has one thread. (The
    // command's own would be fixed before the pid is known.)
    unsafe {
        run.pre_exec(|| {
            let pid = format!("{}\0", std::process::id());
            libc::setenv(c"LISTEN_FDS".as_ptr(), c"1".as_ptr(), 1);
            libc::setenv(c"LISTEN_PID".as_ptr(), pid.as_ptr().cast(), 1);
            Ok(())
        });
    }
    let finished = finish(run);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let mut text = String::new();
    from_guest.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1 1\n");
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
}

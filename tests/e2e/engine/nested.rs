//! A Docker daemon in a privileged container of the engine.

use rvm_tests::engine::{Runtime, runtime};

use crate::engine;

#[test]
fn a_docker_daemon_runs_in_a_privileged_container() {
    if runtime() == Runtime::Runc {
        // The script moves the container's processes, which are the host's own with runc.
        println!("skipped: runc's containers have the host's cgroups");
        return;
    }
    let script = engine().world().dir().join("docker.sh");
    std::fs::write(&script, include_str!("../in_container/docker.sh")).unwrap();
    let script = format!("{}:/script:ro", script.display());
    let volumes = [
        "/usr:/usr:ro",
        "/etc/alternatives:/etc/alternatives:ro",
        &script,
        "/data",
    ];
    let mut options = vec!["--privileged", "--memory", "1g"];
    options.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
    let start = "for name in lib lib64; do ln -s usr/$name /$name; done; \
                 export PATH=/usr/bin:/usr/sbin:/bin; exec /usr/bin/sh /script stop";
    let shown = engine().shell(&options, start);
    let expected = "/content/second\nremoved\n67108864\npage\nbeyond\npublished page\n\
                    stopped with 0 mounts and 0 groups\n";
    assert_eq!(shown, expected);
}

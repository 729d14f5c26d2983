//! The verbs that meet a fault, and what comes before and after them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rvm_tests::pod::{KIND, SANDBOX};
use rvm_tests::{Bundle, Rvm, bind};
use serde_json::json;

/// A verb that meets a fault.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// Verbs before it, which succeed. Words in capitals are places, see [`Places::of`].
    pub before: &'static [&'static str],
    pub target: &'static str,
    /// Verbs after it, which may fail.
    pub after: &'static [&'static str],
    /// What the container's status is afterwards, whatever has happened to the verb. Where the verb
    /// tells it, it tells that.
    pub keeps: Option<&'static str>,
    /// The verb is refused without a fault.
    pub is_refused: bool,
}

const CREATE: &str = "create --bundle LONG box";
const RUNNING: &[&str] = &[CREATE, "start box"];

/// What is done to a container that may have been created.
const LIFE: &[&str] = &[
    "start box",
    "exec box echo",
    "update --memory 300000000 box",
    "pause box",
    "resume box",
    "kill box KILL",
];

pub const SCENARIOS: &[Scenario] = &[
    scenario("run", &[], "run --bundle SHORT box"),
    scenario("run --detach", &[], "run --detach --bundle LONG box").then(LIFE),
    scenario("create", &[], "create --pid-file PID --bundle LONG box").then(LIFE),
    scenario("start", &[CREATE], "start box").then(&["kill box KILL"]),
    scenario("exec", RUNNING, "exec box echo").keeps("running"),
    scenario(
        "exec --detach",
        RUNNING,
        "exec --detach --pid-file PID box echo",
    )
    .keeps("running"),
    scenario(
        "update",
        RUNNING,
        "update --memory 300000000 --cpu-quota 50000 box",
    )
    .keeps("running"),
    scenario("pause", RUNNING, "pause box").then(&["resume box"]),
    scenario("resume", &[CREATE, "start box", "pause box"], "resume box"),
    scenario("kill", RUNNING, "kill box KILL"),
    scenario("kill TERM", RUNNING, "kill box TERM"),
    scenario(
        "delete",
        &[CREATE, "start box", "kill box KILL", "WAIT"],
        "delete box",
    ),
    scenario("delete one that runs", RUNNING, "delete box")
        .refused()
        .keeps("running"),
    scenario("delete --force", RUNNING, "delete --force box"),
    scenario("state", RUNNING, "state box").keeps("running"),
    scenario("list", RUNNING, "list").keeps("running"),
    scenario("ps", RUNNING, "ps box").keeps("running"),
    scenario("events", RUNNING, "events --stats box").keeps("running"),
    scenario(
        "checkpoint",
        RUNNING,
        "checkpoint --leave-running --image-path IMAGE box",
    )
    .keeps("running"),
    scenario("checkpoints", &[], CREATE).then(&[
        "start box",
        "checkpoint --leave-running --image-path IMAGE box",
        "checkpoint --image-path IMAGE box",
    ]),
    scenario(
        "restore",
        &[CREATE, "start box", "checkpoint --image-path IMAGE box"],
        "restore --detach --image-path IMAGE --bundle LONG box",
    )
    .then(&["kill box KILL"]),
    scenario(
        "member",
        &["create --bundle POD pod", "start pod"],
        "create --bundle MEMBER box",
    )
    .then(&["start box", "exec box echo", "kill box KILL"]),
    scenario(
        "member's end",
        &[
            "create --bundle POD pod",
            "start pod",
            "create --bundle MEMBER box",
            "start box",
        ],
        "delete --force box",
    ),
];

const fn scenario(
    name: &'static str,
    before: &'static [&'static str],
    target: &'static str,
) -> Scenario {
    Scenario {
        name,
        before,
        target,
        after: &[],
        keeps: None,
        is_refused: false,
    }
}

impl Scenario {
    const fn then(mut self, after: &'static [&'static str]) -> Self {
        self.after = after;
        self
    }

    const fn refused(mut self) -> Self {
        self.is_refused = true;
        self
    }

    const fn keeps(mut self, status: &'static str) -> Self {
        self.keeps = Some(status);
        self
    }
}

/// The bundles and files of one world.
pub struct Places {
    short: Bundle,
    long: Bundle,
    pod: Bundle,
    member: Bundle,
    dir: PathBuf,
}

impl Places {
    pub fn new(rvm: &Rvm) -> Self {
        let volume = rvm.path("volume");
        fs::create_dir_all(volume.join("..1")).unwrap();
        fs::write(volume.join("..1/key"), "value").unwrap();
        symlink("..1", volume.join("..data")).unwrap();
        symlink("..data/key", volume.join("key")).unwrap();
        let hook = || json!([{ "path": "/bin/true" }]);
        let long = Bundle::new(&["sleep", "1000"]).with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(bind(&volume, "/volume", &["bind", "ro"]));
            mounts.push(bind(Path::new("/usr"), "/usr", &["rbind", "ro"]));
            config["hooks"] = json!({
                "createRuntime": hook(), "poststart": hook(), "poststop": hook(),
            });
            config["linux"]["resources"]["memory"] = json!({ "limit": 268_435_456 });
            config["linux"]["resources"]["pids"] = json!({ "limit": 100 });
        });
        let pod = Bundle::new(&["sleep", "1000"]).with(|config| {
            config["annotations"] = json!({ KIND: "sandbox", SANDBOX: "pod" });
        });
        let member = Bundle::new(&["sleep", "1000"]).with(|config| {
            config["annotations"] = json!({ KIND: "container", SANDBOX: "pod" });
            config.as_object_mut().unwrap().remove("hostname");
        });
        for bundle in [&long, &pod, &member] {
            bundle.write();
        }
        let short = Bundle::new(&["echo"]);
        short.write();
        Self {
            short,
            long,
            pod,
            member,
            dir: rvm.path(""),
        }
    }

    /// The arguments of a verb.
    pub fn of(&self, verb: &str) -> Vec<String> {
        let place = |word: &str| -> String {
            let path = match word {
                "SHORT" => self.short.path(),
                "LONG" => self.long.path(),
                "POD" => self.pod.path(),
                "MEMBER" => self.member.path(),
                "PID" => &self.dir.join("pid"),
                "IMAGE" => &self.dir.join("image"),
                other => return other.to_owned(),
            };
            path.to_str().unwrap().to_owned()
        };
        verb.split(' ').map(place).collect()
    }
}

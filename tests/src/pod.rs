//! Several containers in one machine, requested by annotations as containerd does.

use serde_json::json;

use crate::{Bundle, Rvm};

pub const KIND: &str = "io.kubernetes.cri.container-type";
pub const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The first container of a pod.
pub fn sandbox(rvm: &Rvm) -> Bundle {
    sandbox_with(rvm, &[])
}

/// The same, with more annotations.
pub fn sandbox_with(rvm: &Rvm, annotations: &[(&str, &str)]) -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
        config["hostname"] = json!("pod");
        config["annotations"] = json!({ KIND: "sandbox", SANDBOX: "pod" });
        for (name, value) in annotations {
            config["annotations"][name] = json!(value);
        }
    });
    rvm.create(&bundle, "pod");
    rvm.ok(&["start", "pod"]);
    bundle
}

/// A container that shares these namespaces with the pod.
pub fn member(rvm: &Rvm, script: &str, shared: &[&str]) -> Bundle {
    let bundle = Bundle::shell(script).with(|config| {
        config["annotations"] = json!({ KIND: "container", SANDBOX: "pod" });
        config.as_object_mut().unwrap().remove("hostname");
    });
    join(rvm, bundle, shared)
}

/// The bundle of a member for the pod that runs now.
pub fn join(rvm: &Rvm, bundle: Bundle, shared: &[&str]) -> Bundle {
    let pid = rvm.state("pod")["pid"].as_i64().unwrap();
    bundle.with(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let kind = namespace["type"].as_str().unwrap().to_owned();
            let file = if kind == "network" { "net" } else { &kind };
            if shared.contains(&file) {
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        }
    })
}

/// As engines do for pods.
pub const POD: &[&str] = &["net", "ipc", "uts"];

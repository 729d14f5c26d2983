//! `linux.resources.pids.limit`, whose 0 has two meanings. Pure.
//!
//! Until runtime-spec 1.2 it was no limit to set, as runc had it. From 1.3 on a limit that is
//! absent is that, and 0 is a limit like any other: as with runc 1.4 the container gets one task,
//! which systemd can be told too, and can start no other.

use oci_spec::runtime::Spec;
use serde::Deserialize;

use super::validate::is_at_least_1;

/// Makes 0 mean that there is nothing to set. `text` is what `spec` was parsed from.
pub(super) fn normalize(spec: &mut Spec, text: &str) {
    let may_be_0 = is_at_least_1(3, spec.version());
    let resources = spec.linux_mut().as_mut();
    let resources = resources.and_then(|linux| linux.resources_mut().as_mut());
    let pids = resources.and_then(|resources| resources.pids_mut().as_mut());
    if let Some(pids) = pids.filter(|pids| may_be_0 && pids.limit() == 0 && has_limit(text)) {
        pids.set_limit(1);
    }
}

/// Whether the limit is there; oci-spec does not tell it from 0.
fn has_limit(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Config {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        resources: Option<Resources>,
    }
    #[derive(Deserialize)]
    struct Resources {
        pids: Option<Pids>,
    }
    #[derive(Deserialize)]
    struct Pids {
        limit: Option<i64>,
    }
    let config: Option<Config> = serde_json::from_str(text).ok();
    let resources = config.and_then(|config| config.linux?.resources);
    resources.is_some_and(|resources| resources.pids.is_some_and(|pids| pids.limit.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn limit(version: &str, pids: Value) -> i64 {
        let config = json!({ "ociVersion": version, "linux": { "resources": { "pids": pids } } });
        let mut spec: Spec = serde_json::from_value(config.clone()).unwrap();
        normalize(&mut spec, &config.to_string());
        let linux = spec.linux().clone().unwrap();
        linux.resources().clone().unwrap().pids().unwrap().limit()
    }

    #[test]
    fn zero_is_a_limit_from_version_1_3_on() {
        assert_eq!(limit("1.2.1", json!({ "limit": 0 })), 0);
        assert_eq!(limit("1.3.0", json!({ "limit": 0 })), 1);
        assert_eq!(limit("1.3.0", json!({})), 0);
        for version in ["1.0.2", "1.3.0"] {
            assert_eq!(limit(version, json!({ "limit": -1 })), -1);
            assert_eq!(limit(version, json!({ "limit": 7 })), 7);
        }
    }
}

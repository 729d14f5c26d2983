//! Checks docs/oci-conformance.md against the schema of the runtime specification, and against the
//! errors for the fields that it calls refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Bundle, CONFIG_FILE, parse};

const DOCUMENT: &str = include_str!("../../../docs/oci-conformance.md");

/// The values of the column that says where a field is applied.
const PLACES: [&str; 5] = ["guest", "host", "both", "no effect", "refused"];

/// Sections of other platforms, with one row each.
const WHOLE: [&str; 4] = ["solaris", "windows", "zos", "freebsd"];

/// A row of a table of fields.
struct Row {
    patterns: Vec<String>,
    place: &'static str,
    how: &'static str,
}

fn rows() -> Vec<Row> {
    let (_, fields) = DOCUMENT.split_once("\n## Fields\n").unwrap();
    let (fields, _) = fields.split_once("\n## ").unwrap();
    let lines = fields.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [field, place, how] = cells[..] else {
                panic!("{line}")
            };
            assert!(PLACES.contains(&place), "{line}");
            Row {
                patterns: alternatives(field.trim_matches('`')),
                place,
                how,
            }
        })
        .collect()
}

/// Expands `{a,b}`.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (names, after) = rest.split_once('}').unwrap();
    let all = names.split(',');
    all.flat_map(|name| alternatives(&format!("{before}{name}{after}")))
        .collect()
}

fn matches(pattern: &str, field: &str) -> bool {
    let (pattern, field) = (pattern.split('.'), field.split('.'));
    let same = |(one, other): (&str, &str)| {
        let star = one.strip_prefix('*');
        one == other || star.is_some_and(|rest| other.ends_with(rest) && !rest.is_empty())
    };
    pattern.clone().count() == field.clone().count() && pattern.zip(field).all(same)
}

/// The files of the schema by their names.
struct Schema(BTreeMap<&'static str, Value>);

impl Schema {
    fn read() -> Self {
        let files = [
            (
                "config-schema.json",
                include_str!("../../../tests/oci-schema/config-schema.json"),
            ),
            (
                "config-linux.json",
                include_str!("../../../tests/oci-schema/config-linux.json"),
            ),
            (
                "config-vm.json",
                include_str!("../../../tests/oci-schema/config-vm.json"),
            ),
            (
                "defs-vm.json",
                include_str!("../../../tests/oci-schema/defs-vm.json"),
            ),
            (
                "defs.json",
                include_str!("../../../tests/oci-schema/defs.json"),
            ),
            (
                "defs-linux.json",
                include_str!("../../../tests/oci-schema/defs-linux.json"),
            ),
        ];
        let read = |(name, text)| (name, serde_json::from_str(text).unwrap());
        Self(files.into_iter().map(read).collect())
    }

    /// Collects the fields below a node of the schema and the values of its enums, following
    /// references.
    fn visit(&self, file: &str, node: &Value, path: &str, found: &mut Fields) {
        if let Some(reference) = node["$ref"].as_str() {
            let (other, pointer) = reference.split_once('#').unwrap();
            let file = if other.is_empty() { file } else { other };
            let node = self.0[file].pointer(pointer).unwrap();
            return self.visit(file, node, path, found);
        }
        for kind in ["allOf", "anyOf"] {
            for part in node[kind].as_array().into_iter().flatten() {
                self.visit(file, part, path, found);
            }
        }
        for (name, field) in node["properties"].as_object().into_iter().flatten() {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            found.fields.insert(path.clone());
            if !WHOLE.contains(&path.as_str()) {
                self.visit(file, field, &path, found);
            }
        }
        if node["items"].is_object() {
            self.visit(file, &node["items"], &format!("{path}[]"), found);
        }
        if node["additionalProperties"].is_object() {
            let node = &node["additionalProperties"];
            self.visit(file, node, &format!("{path}.*"), found);
        }
        if let Some(values) = node["enum"].as_array() {
            found.values.insert(path.to_owned(), values.clone());
        }
    }
}

#[derive(Default)]
struct Fields {
    fields: BTreeSet<String>,
    values: BTreeMap<String, Vec<Value>>,
}

fn schema() -> Fields {
    let schema = Schema::read();
    let mut found = Fields::default();
    let root = &schema.0["config-schema.json"];
    schema.visit("config-schema.json", root, "", &mut found);
    assert!(found.fields.len() > 200, "{}", found.fields.len());
    found
}

#[test]
fn every_field_of_the_schema_is_in_the_document_once_and_no_other_is() {
    let (rows, fields) = (rows(), schema().fields);
    let patterns: Vec<&str> = rows
        .iter()
        .flat_map(|row| row.patterns.iter().map(String::as_str))
        .collect();
    for field in &fields {
        let count = patterns
            .iter()
            .filter(|pattern| matches(pattern, field))
            .count();
        assert_eq!(count, 1, "rows for {field}");
    }
    for pattern in patterns {
        assert!(
            fields.iter().any(|field| matches(pattern, field)),
            "{pattern} is in no configuration"
        );
    }
}

/// The error for a bundle whose value at `pointer` is replaced or added.
fn error_with(pointer: &str, value: Value) -> Option<String> {
    let mut config = json!({
        "ociVersion": "1.2.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/" },
        "root": { "path": "rootfs" },
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }] },
    });
    let mut node = &mut config;
    for name in pointer.split('.') {
        node = &mut node[name];
    }
    *node = value;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let error = Bundle::load(dir.path()).err()?.to_string();
    let at = error.find(CONFIG_FILE).unwrap();
    Some(error[at..].to_owned())
}

/// The lines that the document quotes, each split at its variable part.
fn quoted() -> Vec<(&'static str, &'static str)> {
    let lines = DOCUMENT.split('`').skip(1).step_by(2);
    let lines = lines.filter(|text| text.starts_with("config.json: "));
    lines
        .map(|line| line.split_once('…').unwrap_or((line, "")))
        .collect()
}

fn is(line: &str, (start, end): &(&str, &str)) -> bool {
    line.starts_with(start) && line.ends_with(end) && (!end.is_empty() || line == *start)
}

/// Fields with values that are refused. `socket` is the path of a socket.
fn refused(socket: &Path) -> Vec<(&'static str, Value)> {
    [of_common(socket), of_linux(), of_the_machine()].concat()
}

fn of_the_machine() -> Vec<(&'static str, Value)> {
    let hardware = |member: &str, value: Value| ("vm.hwConfig", json!({ member: value }));
    vec![
        ("vm", json!({ "hypervisor": { "path": "/vmm" } })),
        ("vm", json!({ "kernel": { "path": "/kernel" } })),
        (
            "vm",
            json!({ "image": { "path": "/image", "format": "raw" } }),
        ),
        hardware("deviceTree", json!("/tree")),
        hardware("dtdevs", json!(["dev"])),
        hardware("iomems", json!([{ "firstMFN": 1, "nrMFNs": 1 }])),
        hardware("irqs", json!([11])),
        hardware("vcpus", json!(254)),
        hardware("memory", json!(4 << 20)),
        ("linux.memoryPolicy", json!({ "mode": "MPOL_BIND" })),
        (
            "linux.memoryPolicy",
            json!({ "mode": "MPOL_LOCAL", "nodes": "0" }),
        ),
        (
            "linux.memoryPolicy",
            json!({ "mode": "MPOL_BIND", "nodes": "all" }),
        ),
    ]
}

fn of_common(socket: &Path) -> Vec<(&'static str, Value)> {
    let tmpfs = json!({ "destination": "/a", "type": "tmpfs" });
    let sixth = |mount: Value| {
        let mut mounts = vec![tmpfs.clone(); 5];
        mounts.push(mount);
        Value::from(mounts)
    };
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let nofile = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 });
    vec![
        ("ociVersion", json!("2.0.0")),
        ("root", Value::Null),
        (
            "mounts",
            sixth(json!({ "destination": "/s", "type": "bind", "source": socket })),
        ),
        (
            "mounts",
            sixth(json!({ "destination": "/a", "type": "tmpfs", "uidMappings": map })),
        ),
        (
            "mounts",
            sixth(json!({ "destination": "/o", "type": "overlay", "options": ["upperdir=/u"] })),
        ),
        ("process", Value::Null),
        ("process.args", json!([])),
        ("process.commandLine", json!("cmd.exe")),
        ("process.cwd", json!("tmp")),
        ("process.user.username", json!("ContainerUser")),
        ("process.rlimits", json!([nofile, nofile])),
        ("process.scheduler", json!({ "policy": "SCHED_ISO" })),
        ("hooks.createContainer", json!([{ "path": "/bin/cat" }])),
        ("hooks.poststop", json!([{ "path": "hook" }])),
        ("hooks.poststop", json!([{ "path": "/h", "timeout": 0 }])),
        ("windows", json!({ "layerFolders": [] })),
        ("solaris", json!({})),
        ("zos", json!({})),
        ("freebsd", json!({})),
    ]
}

fn of_linux() -> Vec<(&'static str, Value)> {
    let notify = "SCMP_ACT_NOTIFY";
    let allow = "SCMP_ACT_ALLOW";
    vec![
        ("linux.namespaces", json!([{ "type": "pid" }])),
        (
            "linux.namespaces",
            json!([{ "type": "pid" }, { "type": "pid" }]),
        ),
        (
            "linux.namespaces",
            json!([{ "type": "ipc", "path": "/proc/1/ns/ipc" }]),
        ),
        (
            "linux.personality",
            json!({ "domain": "LINUX", "flags": ["X"] }),
        ),
        ("linux.intelRdt", json!({ "closID": "x" })),
        (
            "linux.resources.memory",
            json!({ "disableOOMKiller": true }),
        ),
        ("linux.resources.memory", json!({ "useHierarchy": false })),
        ("linux.resources.cpu", json!({ "realtimeRuntime": 1 })),
        ("linux.resources.cpu", json!({ "realtimePeriod": 1 })),
        ("linux.resources.blockIO", json!({ "leafWeight": 10 })),
        (
            "linux.resources.blockIO.weightDevice",
            json!([{ "major": 8, "minor": 0, "leafWeight": 10 }]),
        ),
        ("linux.resources.network", json!({ "classID": 1 })),
        (
            "linux.resources.network.priorities",
            json!([{ "name": "eth0", "priority": 1 }]),
        ),
        (
            "linux.resources.rdma",
            json!({ "mlx5_1": { "hcaHandles": 3 } }),
        ),
        ("linux.seccomp", json!({ "defaultAction": notify })),
        (
            "linux.seccomp",
            json!({ "defaultAction": allow, "listenerMetadata": "x" }),
        ),
        (
            "linux.seccomp",
            json!({ "defaultAction": allow,
                    "syscalls": [{ "names": ["read"], "action": notify }] }),
        ),
    ]
}

#[test]
fn the_lines_that_the_document_quotes_are_printed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let quoted = quoted();
    let printed: Vec<String> = refused(&socket)
        .into_iter()
        .map(|(pointer, value)| {
            let line = error_with(pointer, value);
            line.unwrap_or_else(|| panic!("{pointer} is not refused"))
        })
        .collect();
    for line in &printed {
        assert!(quoted.iter().any(|quote| is(line, quote)), "{line}");
    }
    for quote in quoted {
        assert!(printed.iter().any(|line| is(line, &quote)), "{quote:?}");
    }
}

#[test]
fn a_row_that_says_refused_says_how() {
    for row in rows().iter().filter(|row| row.place == "refused") {
        let says = ["config.json: ", "with it", "the same line", "unless"];
        assert!(
            says.iter().any(|text| row.how.contains(text)),
            "{}",
            row.patterns[0]
        );
    }
}

/// Reads each value of the schema's enums as part of a configuration.
#[test]
fn every_value_that_the_schema_lists_can_be_read() {
    let found = schema().values;
    assert!(found.len() >= 9, "{:?}", found.keys());
    for (field, values) in &found {
        for value in values {
            let mut config = json!({
                "ociVersion": "1.2.0",
                "process": { "user": {}, "args": ["sh"], "cwd": "/",
                             "scheduler": { "policy": "SCHED_OTHER" } },
                "linux": { "memoryPolicy": { "mode": "MPOL_LOCAL" }, "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    { "names": ["read"], "action": "SCMP_ACT_LOG",
                      "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }] },
                ] } },
            });
            let mut node = &mut config;
            for name in field.split('.') {
                let is_list = name.ends_with("[]");
                node = &mut node[name.trim_end_matches("[]")];
                if is_list {
                    if node.is_null() {
                        *node = json!([null]);
                    }
                    node = &mut node[0];
                }
            }
            *node = value.clone();
            // A required sibling.
            if field == "process.ioPriority.class" {
                config["process"]["ioPriority"]["priority"] = json!(0);
            }
            let read =
                parse::<super::parsed::ParsedSpec>(CONFIG_FILE.as_ref(), &config.to_string());
            assert!(read.is_ok(), "{field} {value}: {read:?}");
        }
    }
}

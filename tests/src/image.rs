//! Images with a bundle's root, as archives that containerd and others import.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::Bundle;

/// The name of the image of most containers.
pub const NAME: &str = "docker.io/library/rvm-test:latest";

/// The configuration of an image with this default command.
pub fn config(program: &[&str]) -> Value {
    json!({ "Env": ["PATH=/bin"], "Cmd": program })
}

/// Writes an archive with an image of busybox into a directory, with its name and its
/// configuration; returns its path.
pub fn write(dir: &Path, name: &str, config: &Value) -> PathBuf {
    let bundle = Bundle::new(&["sh"]);
    let layout = dir.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = dir.join("layer.tar");
    tar(&bundle.rootfs(""), &layer);
    let layer = add(&layout, fs::read(layer).unwrap());
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = add(&layout, config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": typed(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [typed(layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = add(&layout, manifest.to_string().into_bytes());
    let mut manifest = typed(manifest, "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    fs::write(layout.join("oci-layout"), version.to_string()).unwrap();
    let image = dir.join("image.tar");
    tar(&layout, &image);
    image
}

/// Adds a blob; returns its descriptor.
fn add(layout: &Path, bytes: Vec<u8>) -> Value {
    let new = layout.join("blobs/sha256/new");
    fs::write(&new, &bytes).unwrap();
    let output = Command::new("sha256sum").arg(&new).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let digest = text.split_whitespace().next().unwrap();
    fs::rename(&new, new.with_file_name(digest)).unwrap();
    json!({ "digest": format!("sha256:{digest}"), "size": bytes.len() })
}

fn typed(mut descriptor: Value, media_type: &str) -> Value {
    descriptor["mediaType"] = media_type.into();
    descriptor
}

fn tar(dir: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg("-cf").arg(archive).arg(".");
    assert!(tar.status().unwrap().success());
}

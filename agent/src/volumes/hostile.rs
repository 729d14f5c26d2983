//! Updates of a volume that hold anything: nothing beside its directory changes.

use std::fs;

use protobuf::Message as _;
use rvm_fuzz_input::Decisions;
use rvm_protocol::agent::{UpdateVolumeRequest, VolumeFile, VolumeLink};

use super::copies::update;

/// Names of files, links and versions.
const NAMES: [&str; 14] = [
    "..v1",
    "..v2",
    "..data",
    "..data_tmp",
    "a",
    "b",
    "a/b",
    "..data/a",
    "",
    ".",
    "..",
    "/",
    "../neighbour",
    "a/../../neighbour",
];

/// What is in the directory beside the volume's.
const NEIGHBOUR: &str = "neighbour";

/// Makes some updates one after the other.
pub async fn updates(decisions: &mut Decisions<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let neighbour = dir.path().join(NEIGHBOUR);
    fs::create_dir(&neighbour).unwrap();
    fs::write(neighbour.join("a"), "kept").unwrap();
    for _ in 0..4 {
        if decisions.are_over() {
            break;
        }
        let request = match decisions.choose(4) {
            0 => UpdateVolumeRequest::parse_from_bytes(&decisions.bytes()).ok(),
            _ => Some(request(decisions)),
        };
        if let Some(mut request) = request {
            own(&mut request);
            let _ = update(&dir.path().join("volume"), &request).await;
        }
        assert_eq!(fs::read_dir(&neighbour).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(neighbour.join("a")).unwrap(), "kept");
    }
}

fn request(decisions: &mut Decisions<'_>) -> UpdateVolumeRequest {
    let mut request = UpdateVolumeRequest::new();
    request.version = decisions.pick(&NAMES).to_owned();
    for _ in 0..decisions.choose(4) {
        let mut file = VolumeFile::new();
        file.path = decisions.pick(&NAMES).to_owned();
        file.mode = decisions.pick(&[0o100_644, 0o040_755, 0o120_777, u32::MAX, 0]);
        file.content = decisions.bytes();
        request.files.push(file);
    }
    for _ in 0..decisions.choose(4) {
        let mut link = VolumeLink::new();
        link.name = decisions.pick(&NAMES).to_owned();
        link.target = decisions.pick(&NAMES).to_owned();
        request.links.push(link);
    }
    request
}

/// Leaves the owner as it is, which not everybody may change.
fn own(request: &mut UpdateVolumeRequest) {
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let files = request.files.iter_mut();
    for file in files.chain(request.root.as_mut()) {
        (file.uid, file.gid) = (uid, gid);
    }
}

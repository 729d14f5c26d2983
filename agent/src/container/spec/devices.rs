//! Translates `linux.devices`, with the devices that every container has.

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping};

use super::namespaces::outside;
use super::{Namespaces, SpecError, UserNamespace, path_text};
use crate::init::plan::{ContainerPlan, DevicePlan};

const DEFAULT_MODE: u32 = 0o666;

/// Path, major and minor number of the character devices that the runtime specification requires.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Adds the devices to the plan. A device of config.json replaces a default one of the same path.
/// Owners that a user namespace maps are those in the guest.
pub fn translate(
    linux: &Linux,
    namespaces: &Namespaces,
    plan: &mut ContainerPlan,
) -> Result<(), SpecError> {
    // A process in a user namespace cannot make device nodes.
    plan.bind_devices = namespaces.user.is_own();
    if !plan.populate_dev {
        return Ok(());
    }
    let devices = linux.devices().iter().flatten().enumerate();
    let own = devices
        .map(|(index, device)| one(index, device))
        .map(|device| device.map(|device| map_owner(device, linux, namespaces)))
        .collect::<Result<Vec<_>, _>>()?;
    let defaults = DEFAULTS
        .iter()
        .filter(|(path, ..)| own.iter().all(|own| own.path != *path));
    plan.devices = defaults
        .map(|(path, major, minor)| DevicePlan {
            path: (*path).to_owned(),
            mode: libc::S_IFCHR | DEFAULT_MODE,
            major: *major,
            minor: *minor,
            uid: 0,
            gid: 0,
        })
        .collect();
    plan.devices.extend(own);
    Ok(())
}

fn map_owner(mut device: DevicePlan, linux: &Linux, namespaces: &Namespaces) -> DevicePlan {
    if let UserNamespace::New { .. } = namespaces.user {
        let map = |mappings: &Option<Vec<LinuxIdMapping>>, id| {
            outside(mappings.as_deref().unwrap_or_default(), id).unwrap_or(id)
        };
        device.uid = map(linux.uid_mappings(), device.uid);
        device.gid = map(linux.gid_mappings(), device.gid);
    }
    device
}

fn one(index: usize, device: &LinuxDevice) -> Result<DevicePlan, SpecError> {
    let field = format!("linux.devices[{index}]");
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(SpecError::invalid(field, "has type a")),
    };
    let number = |value: i64| {
        u32::try_from(value)
            .map_err(|_| SpecError::invalid(field.clone(), format!("has the number {value}")))
    };
    let path = path_text(&format!("{field}.path"), device.path())?;
    if !path.starts_with('/') {
        return Err(SpecError::invalid(
            format!("{field}.path"),
            "is not absolute",
        ));
    }
    Ok(DevicePlan {
        path,
        mode: kind | device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

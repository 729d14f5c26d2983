//! The section `vm` of config.json; see config-vm.md. oci-spec does not know `hwConfig`, so it is
//! parsed here. Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::parsed::ParsedSpec;
use super::unsupported;
use super::validate::FieldError;
use crate::sizing::Hardware;

/// `vm`, as far as its members matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ParsedVm {
    hypervisor: Option<Program>,
    kernel: Option<Program>,
    image: Option<IgnoredAny>,
    hw_config: Option<HwConfig>,
}

/// A file that would take the place of one of rvm's. The schema demands a kernel, which may be one
/// without a path.
#[derive(Debug, Deserialize)]
struct Program {
    #[serde(default)]
    path: String,
    #[serde(default)]
    parameters: Vec<String>,
    #[serde(default)]
    initrd: String,
}

impl Program {
    fn is_set(&self) -> bool {
        !(self.path.is_empty() && self.parameters.is_empty() && self.initrd.is_empty())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HwConfig {
    #[serde(default)]
    device_tree: String,
    #[serde(default)]
    vcpus: u32,
    #[serde(default)]
    memory: u64,
    #[serde(default)]
    dtdevs: Vec<IgnoredAny>,
    #[serde(default)]
    iomems: Vec<IgnoredAny>,
    #[serde(default)]
    irqs: Vec<IgnoredAny>,
}

const BY_CONFIGURATION: &str = "is not supported; rvm's own configuration names it";
const NO_DEVICES: &str = "is not supported; a machine has no devices of the host's";

/// The machine that a configuration asks for. Fails with the first member that cannot be had.
pub(super) fn hardware(parsed: &ParsedSpec) -> Result<Hardware, FieldError> {
    refuse(&[(
        "freebsd",
        parsed.is_for_freebsd(),
        "is of another platform and not supported",
    )])?;
    parsed
        .vm
        .as_ref()
        .map_or(Ok(Hardware::default()), ParsedVm::hardware)
}

impl ParsedVm {
    fn hardware(&self) -> Result<Hardware, FieldError> {
        let is_set = |program: &Option<Program>| program.as_ref().is_some_and(Program::is_set);
        refuse(&[
            ("vm.hypervisor", is_set(&self.hypervisor), BY_CONFIGURATION),
            ("vm.kernel", is_set(&self.kernel), BY_CONFIGURATION),
            (
                "vm.image",
                self.image.is_some(),
                "is not supported; the guest's own root is part of rvm",
            ),
        ])?;
        let Some(hardware) = &self.hw_config else {
            return Ok(Hardware::default());
        };
        refuse(&[
            (
                "vm.hwConfig.deviceTree",
                !hardware.device_tree.is_empty(),
                NO_DEVICES,
            ),
            (
                "vm.hwConfig.dtdevs",
                !hardware.dtdevs.is_empty(),
                NO_DEVICES,
            ),
            (
                "vm.hwConfig.iomems",
                !hardware.iomems.is_empty(),
                NO_DEVICES,
            ),
            ("vm.hwConfig.irqs", !hardware.irqs.is_empty(), NO_DEVICES),
        ])?;
        Hardware::new(hardware.vcpus, hardware.memory).map_err(|(member, reason)| FieldError {
            field: format!("vm.hwConfig.{member}"),
            reason,
        })
    }
}

fn refuse(members: &[(&str, bool, &str)]) -> Result<(), FieldError> {
    unsupported::first(members).map_or(Ok(()), Err)
}

//! Device rules: the last rule that matches an access decides.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::ResourceError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block and character devices.
    Any,
    Block,
    Char,
}

/// Accesses to a device, as bits; `BPF_DEVCG_ACC_*` of `<linux/bpf.h>`.
pub mod access {
    pub const MKNOD: u8 = 1;
    pub const READ: u8 = 2;
    pub const WRITE: u8 = 4;
    pub const ALL: u8 = 7;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Kind,
    /// `None` matches every number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Bits of [`access`], never none.
    pub access: u8,
}

const fn allow(major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule {
        allow: true,
        kind: Kind::Char,
        major,
        minor,
        access,
    }
}

/// The rules that runc adds to those of config.json: a container may make any node, and use null,
/// zero, full, random, urandom, tty, console, the pseudo terminals and their multiplexer.
const DEFAULTS: [Rule; 11] = [
    allow(None, None, access::MKNOD),
    Rule {
        kind: Kind::Block,
        ..allow(None, None, access::MKNOD)
    },
    allow(Some(1), Some(3), access::ALL),
    allow(Some(1), Some(8), access::ALL),
    allow(Some(1), Some(7), access::ALL),
    allow(Some(5), Some(0), access::ALL),
    allow(Some(1), Some(5), access::ALL),
    allow(Some(1), Some(9), access::ALL),
    allow(Some(5), Some(1), access::ALL),
    allow(Some(136), None, access::ALL),
    allow(Some(5), Some(2), access::ALL),
];

/// The rules of config.json followed by the defaults.
pub fn with_defaults(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, ResourceError> {
    let own = rules.iter().map(to_rule).filter_map(Result::transpose);
    own.chain(DEFAULTS.into_iter().map(Ok)).collect()
}

/// `None` for a rule about no access at all.
fn to_rule(rule: &LinuxDeviceCgroup) -> Result<Option<Rule>, ResourceError> {
    let invalid = |text: String| ResourceError::Invalid(format!("devices: {text}"));
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => Kind::Any,
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
        LinuxDeviceType::P => return Err(invalid("a rule about pipes".to_owned())),
    };
    if kind == Kind::Any {
        // runc takes a rule about all devices to be about every number and access.
        return Ok(Some(ANY.with_allow(rule.allow())));
    }
    let mut bits = 0;
    for letter in rule.access().as_deref().unwrap_or_default().chars() {
        bits |= match letter {
            'r' => access::READ,
            'w' => access::WRITE,
            'm' => access::MKNOD,
            other => return Err(invalid(format!("access {other:?} is none of r, w and m"))),
        };
    }
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(invalid(format!("{value} is no device number"))),
        },
    };
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    Ok((bits != 0).then_some(Rule {
        allow: rule.allow(),
        kind,
        major,
        minor,
        access: bits,
    }))
}

const ANY: Rule = Rule {
    allow: false,
    kind: Kind::Any,
    major: None,
    minor: None,
    access: access::ALL,
};

impl Rule {
    fn with_allow(self, allow: bool) -> Self {
        Self { allow, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Result<Vec<Rule>, ResourceError> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        with_defaults(&rules)
    }

    #[test]
    fn a_rule_of_config_json_comes_before_the_defaults() {
        let rules = rules(r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#);
        let rules = rules.unwrap();
        assert_eq!(rules.len(), DEFAULTS.len() + 1);
        assert_eq!(
            rules[0],
            allow(Some(10), Some(229), access::READ | access::WRITE)
        );
    }

    #[test]
    fn a_rule_about_all_devices_is_about_every_access() {
        let rules = rules(r#"[{"allow":false,"access":"r"},{"allow":true,"type":"a","major":1}]"#);
        assert_eq!(rules.unwrap()[..2], [ANY, ANY.with_allow(true)]);
    }

    #[test]
    fn an_unknown_access_is_refused() {
        let error = rules(r#"[{"allow":true,"type":"c","access":"rx"}]"#).unwrap_err();
        assert!(error.to_string().contains("'x'"), "{error}");
    }

    #[test]
    fn minus_one_stands_for_every_number() {
        let rules = rules(r#"[{"allow":true,"type":"b","major":-1,"minor":-1,"access":"m"}]"#);
        assert_eq!(rules.unwrap()[0].major, None);
    }
}

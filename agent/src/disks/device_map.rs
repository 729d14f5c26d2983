//! What a configuration says of block devices, in the guest's numbers: they are the host's there.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder,
};

/// Major and minor number.
pub type Number = (u32, u32);

/// The major number of loop devices, which means the same in both kernels.
pub const LOOP: u32 = 7;

/// The file of limits of I/O, a line for each device.
const IO_MAX: &str = "io.max";

/// A block device of the host that is a disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedDevice {
    /// Its number in config.json.
    pub host: Number,
    pub guest: Number,
    /// Its node in the guest.
    pub node: String,
}

/// The block devices that are disks of a container.
#[derive(Clone, Debug, Default)]
pub struct DeviceMap(Vec<MappedDevice>);

impl DeviceMap {
    pub(super) fn new(devices: impl Iterator<Item = MappedDevice>) -> Self {
        Self(devices.collect())
    }

    /// Devices of these numbers, of the host and of the guest.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn of<const COUNT: usize>(numbers: [(Number, Number); COUNT]) -> Self {
        let device = |(host, guest)| MappedDevice {
            host,
            guest,
            node: String::new(),
        };
        Self::new(numbers.into_iter().map(device))
    }

    /// The disk that is this device of the host.
    pub fn find(&self, host: Number) -> Option<&MappedDevice> {
        self.0.iter().find(|device| device.host == host)
    }

    /// Puts the guest's numbers into device rules and limits of I/O. What names another block
    /// device of the host is removed: the number would be one of a disk of the guest.
    pub fn translate(&self, resources: &mut LinuxResources) {
        if let Some(rules) = resources.devices_mut() {
            *rules = rules.iter().flat_map(|rule| self.rules(rule)).collect();
        }
        if let Some(io) = resources.block_io_mut() {
            self.translate_limits(io);
        }
        if let Some(unified) = resources.unified_mut()
            && let Some(limits) = unified.remove(IO_MAX)
        {
            let lines: Vec<_> = limits.lines().flat_map(|line| self.lines(line)).collect();
            if !lines.is_empty() {
                unified.insert(IO_MAX.to_owned(), lines.join("\n"));
            }
        }
    }

    /// A rule about every number stays as it is, one about a major number is one for each disk.
    fn rules(&self, rule: &LinuxDeviceCgroup) -> Vec<LinuxDeviceCgroup> {
        let number = |wanted: Option<i64>| wanted.filter(|number| *number != -1);
        let is_about_blocks = rule.typ().unwrap_or_default() == LinuxDeviceType::B;
        let (Some(major), true) = (number(rule.major()), is_about_blocks) else {
            return vec![rule.clone()];
        };
        let minor = number(rule.minor());
        let is_meant = |device: &&MappedDevice| {
            i64::from(device.host.0) == major
                && minor.is_none_or(|minor| i64::from(device.host.1) == minor)
        };
        let translate = |device: &MappedDevice| {
            let mut rule = rule.clone();
            rule.set_major(Some(device.guest.0.into()));
            rule.set_minor(Some(device.guest.1.into()));
            rule
        };
        let mut rules: Vec<_> = self.0.iter().filter(is_meant).map(translate).collect();
        if major == i64::from(LOOP) && (minor.is_none() || rules.is_empty()) {
            rules.push(rule.clone());
        }
        rules
    }

    fn translate_limits(&self, io: &mut LinuxBlockIo) {
        let limits = |list: &Option<Vec<LinuxThrottleDevice>>| {
            let all = list.iter().flatten();
            let own = all.flat_map(|limit| self.limits(limit));
            list.as_ref().map(|_| own.collect())
        };
        io.set_throttle_read_bps_device(limits(io.throttle_read_bps_device()));
        io.set_throttle_write_bps_device(limits(io.throttle_write_bps_device()));
        io.set_throttle_read_iops_device(limits(io.throttle_read_iops_device()));
        io.set_throttle_write_iops_device(limits(io.throttle_write_iops_device()));
    }

    fn limits(&self, limit: &LinuxThrottleDevice) -> Vec<LinuxThrottleDevice> {
        let translate = |(major, minor): Number| {
            let limit = LinuxThrottleDeviceBuilder::default().rate(limit.rate());
            limit.major(major).minor(minor).build().ok()
        };
        let found = self.guests(limit.major(), limit.minor());
        found.filter_map(translate).collect()
    }

    /// A line of io.max: `major:minor key=value …`.
    fn lines(&self, line: &str) -> Vec<String> {
        let Some((number, limits)) = line.trim_start().split_once(' ') else {
            return Vec::new();
        };
        let Some((major, minor)) = parse_number(number) else {
            return Vec::new();
        };
        let guests = self.guests(major.into(), minor.into());
        guests
            .map(|(major, minor)| format!("{major}:{minor} {limits}"))
            .collect()
    }

    /// A device can be several disks: one for each file system on it.
    fn guests(&self, major: i64, minor: i64) -> impl Iterator<Item = Number> {
        let is_meant = move |device: &&MappedDevice| {
            (i64::from(device.host.0), i64::from(device.host.1)) == (major, minor)
        };
        self.0.iter().filter(is_meant).map(|device| device.guest)
    }
}

/// Reads `major:minor`.
pub fn parse_number(number: &str) -> Option<Number> {
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn translated(resources: Value) -> Value {
        let mut resources = serde_json::from_value(resources).unwrap();
        let map = DeviceMap::of([((8, 16), (254, 0)), ((7, 3), (254, 16))]);
        map.translate(&mut resources);
        serde_json::to_value(resources).unwrap()
    }

    fn numbers(rules: Value) -> Vec<(Option<i64>, Option<i64>)> {
        let rules = translated(json!({ "devices": rules }))["devices"].take();
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).unwrap();
        rules
            .iter()
            .map(|rule| (rule.major(), rule.minor()))
            .collect()
    }

    fn rule(kind: &str, major: i64, minor: i64) -> Value {
        json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": "rw" })
    }

    #[test]
    fn a_rule_about_a_disk_has_its_number_in_the_guest() {
        assert_eq!(numbers(json!([rule("b", 8, 16)])), [(Some(254), Some(0))]);
        assert_eq!(numbers(json!([rule("b", 7, 3)])), [(Some(254), Some(16))]);
        assert_eq!(numbers(json!([rule("b", 8, -1)])), [(Some(254), Some(0))]);
    }

    #[test]
    fn a_rule_about_another_disk_of_the_host_gives_none_of_the_guests() {
        let others = json!([rule("b", 254, 0), rule("b", 8, 17), rule("b", 254, -1)]);
        assert_eq!(numbers(others), []);
    }

    #[test]
    fn what_means_the_same_in_both_kernels_stays() {
        let same = [(7, 4), (-1, -1), (-1, 0)];
        for (major, minor) in same {
            let left = numbers(json!([rule("b", major, minor)]));
            assert_eq!(left, [(Some(major), Some(minor))]);
        }
        assert_eq!(numbers(json!([rule("c", 8, 16)])), [(Some(8), Some(16))]);
        assert_eq!(numbers(json!([{ "allow": false }])), [(None, None)]);
        let loops = [(Some(254), Some(16)), (Some(7), Some(-1))];
        assert_eq!(numbers(json!([rule("b", 7, -1)])), loops);
    }

    #[test]
    fn limits_are_those_of_the_disks_alone() {
        let limit = |major, minor| json!({ "major": major, "minor": minor, "rate": 5 });
        let limits = translated(json!({
            "blockIO": {
                "throttleReadBpsDevice": [limit(8, 16), limit(254, 0)],
                "throttleWriteIOPSDevice": [limit(8, 0)],
            },
            "unified": { "io.max": "8:16 rbps=1 wiops=max\n8:0 rbps=1\n\nwrong\n7:3 wbps=2" },
        }));
        let io = &limits["blockIO"];
        assert_eq!(io["throttleReadBpsDevice"], json!([limit(254, 0)]));
        assert_eq!(io["throttleWriteIOPSDevice"], json!([]));
        let lines = "254:0 rbps=1 wiops=max\n254:16 wbps=2";
        assert_eq!(limits["unified"]["io.max"], lines);
        let none = json!({ "unified": { "io.max": "8:0 rbps=1", "memory.high": "1" } });
        assert_eq!(
            translated(none),
            json!({ "unified": { "memory.high": "1" } })
        );
    }
}

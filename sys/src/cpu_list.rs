//! Lists of CPUs such as `0-2,7`, in the list format of cpuset(7).

/// The ranges of a list, each from its first CPU to its last, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<(u64, u64)>);

impl CpuList {
    /// Parses a list; `None` if it is not one. Blanks around numbers are allowed.
    pub fn parse(text: &str) -> Option<Self> {
        text.split(',')
            .map(parse_range)
            .collect::<Option<_>>()
            .map(Self)
    }

    /// The number of CPUs; one that is named twice counts twice. `None` if it exceeds 64 bits.
    pub fn count(&self) -> Option<u64> {
        self.0.iter().try_fold(0_u64, |count, (first, last)| {
            count.checked_add((last - first).checked_add(1)?)
        })
    }

    /// All CPUs, or `None` if one of them is above `max`, which bounds the length of the answer.
    pub fn cpus_up_to(&self, max: u32) -> Option<Vec<u32>> {
        let mut cpus = Vec::new();
        for (first, last) in &self.0 {
            let (first, last) = (u32::try_from(*first).ok()?, u32::try_from(*last).ok()?);
            if last > max {
                return None;
            }
            cpus.extend(first..=last);
        }
        Some(cpus)
    }
}

fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpu_lists_are_read() {
        let cpus = |text| CpuList::parse(text).and_then(|list| list.cpus_up_to(1023));
        assert_eq!(cpus("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(cpus(" 1 - 2"), Some(vec![1, 2]));
        assert_eq!(cpus("3-1"), None);
        assert_eq!(cpus("0-4000000000"), None);
        assert_eq!(cpus(""), None);
    }

    #[test]
    fn a_count_that_overflows_is_none() {
        let count = |text| CpuList::parse(text).and_then(|list| list.count());
        assert_eq!(count("0-2,7"), Some(4));
        assert_eq!(count("0-18446744073709551615"), None);
    }

    proptest! {
        #[test]
        fn a_list_has_as_many_cpus_as_it_counts(ranges in prop::collection::vec((0_u32..64, 0_u32..64), 1..8)) {
            let ranges = ranges.iter().map(|(first, more)| format!("{first}-{}", first + more));
            let list = CpuList::parse(&ranges.collect::<Vec<_>>().join(",")).unwrap();
            let cpus = list.cpus_up_to(127).unwrap();
            prop_assert_eq!(list.count(), Some(cpus.len() as u64));
        }
    }
}

//! Rate limits of a machine's devices, as the configuration and annotations write them. Pure.

use rvm_protocol::vmm::{Rate, Rates, TokenBucket};

/// The longest time in which a bucket refills, in milliseconds: an hour.
const MAX_REFILL_MS: u64 = 60 * 60 * 1000;

/// The largest bucket and burst: more than any device moves within that time.
const MAX_TOKENS: u64 = 1 << 50;

/// A limit by its names.
struct Name {
    key: &'static str,
    annotation: &'static str,
    of: fn(&mut RateLimits) -> &mut Option<Rate>,
}

const NAMES: [Name; 3] = [
    Name {
        key: "net_rx_rate",
        annotation: "org.rvm.net-rx-rate",
        of: |limits| &mut limits.net_rx,
    },
    Name {
        key: "net_tx_rate",
        annotation: "org.rvm.net-tx-rate",
        of: |limits| &mut limits.net_tx,
    },
    Name {
        key: "disk_rate",
        annotation: "org.rvm.disk-rate",
        of: |limits| &mut limits.disk,
    },
];

/// What one place says of a machine's rates; what it does not mention is None.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    net_rx: Option<Rate>,
    net_tx: Option<Rate>,
    disk: Option<Rate>,
}

impl RateLimits {
    /// Reads the values of the configuration's keys. Fails with the key and the reason.
    pub(super) fn of_keys<'t>(
        value: impl Fn(&str) -> Option<&'t str>,
    ) -> Result<Self, (&'static str, String)> {
        Self::read(|name| (name.key, value(name.key)))
    }

    /// Reads annotations. Fails with the name of one and the reason.
    pub fn of_annotations<'t>(
        value: impl Fn(&str) -> Option<&'t str>,
    ) -> Result<Self, (&'static str, String)> {
        Self::read(|name| (name.annotation, value(name.annotation)))
    }

    fn read<'t>(
        value: impl Fn(&Name) -> (&'static str, Option<&'t str>),
    ) -> Result<Self, (&'static str, String)> {
        let mut limits = Self::default();
        for name in &NAMES {
            let (place, text) = value(name);
            if let Some(text) = text {
                let rate = parse(text).map_err(|reason| (place, reason))?;
                *(name.of)(&mut limits) = Some(rate);
            }
        }
        Ok(limits)
    }

    /// The rates of a machine about which an annotation says this and the configuration `less`,
    /// where no annotation says anything.
    pub fn or(self, less: Self) -> Rates {
        Rates {
            net_rx: self.net_rx.or(less.net_rx).unwrap_or_default(),
            net_tx: self.net_tx.or(less.net_tx).unwrap_or_default(),
            disk: self.disk.or(less.disk).unwrap_or_default(),
        }
    }

    /// The name of the first limit that such a machine has.
    pub fn first(self, less: Self) -> Option<String> {
        let limit = |mut limits: Self, name: &Name| *(name.of)(&mut limits);
        NAMES.iter().find_map(|name| {
            let (place, rate) = match (limit(self, name), limit(less, name)) {
                (Some(rate), _) => (format!("annotations[{:?}]", name.annotation), rate),
                (None, rate) => (
                    format!("{} of rvm's configuration", name.key),
                    rate.unwrap_or_default(),
                ),
            };
            (rate != Rate::default()).then_some(place)
        })
    }
}

/// Reads "off", or limits as in `bytes=1000000/100, operations=50/1000+500`: the size of the
/// bucket, the milliseconds in which it refills, and a burst.
fn parse(text: &str) -> Result<Rate, String> {
    let mut rate = Rate::default();
    if text == "off" {
        return Ok(rate);
    }
    for part in text.split(',') {
        let Some((kind, bucket)) = part.trim().split_once('=') else {
            return Err(form(text));
        };
        let place = match kind {
            "bytes" => &mut rate.bytes,
            "operations" => &mut rate.operations,
            _ => return Err(form(text)),
        };
        let bucket = parse_bucket(bucket).ok_or_else(|| form(text))?;
        if place.replace(bucket).is_some() {
            return Err(format!("{text:?} has {kind} twice"));
        }
    }
    Ok(rate)
}

fn form(text: &str) -> String {
    format!(
        "{text:?} is no rate; it is \"off\", or as \"bytes=1000000/100, operations=50/1000+500\": \
         a size from 1 on, the milliseconds from 1 to {MAX_REFILL_MS} in which so much comes \
         again, and at most a burst"
    )
}

fn parse_bucket(text: &str) -> Option<TokenBucket> {
    let (size, rest) = text.split_once('/')?;
    let (refill, burst) = rest.split_once('+').unwrap_or((rest, "0"));
    let number = |text: &str, range: std::ops::RangeInclusive<u64>| {
        // parse() would take a sign.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number)?;
        range.contains(&number).then_some(number)
    };
    Some(TokenBucket {
        size: number(size, 1..=MAX_TOKENS)?,
        refill_ms: number(refill, 1..=MAX_REFILL_MS)?,
        burst: number(burst, 0..=MAX_TOKENS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_ms: u64, burst: u64) -> Option<TokenBucket> {
        Some(TokenBucket {
            size,
            refill_ms,
            burst,
        })
    }

    #[test]
    fn a_rate_has_bytes_or_operations_or_both() {
        for (text, bytes, operations) in [
            ("off", None, None),
            ("bytes=1000/100", bucket(1000, 100, 0), None),
            ("operations=5/1000+20", None, bucket(5, 1000, 20)),
            (
                "bytes=1/1, operations=2/3600000",
                bucket(1, 1, 0),
                bucket(2, 3_600_000, 0),
            ),
        ] {
            assert_eq!(parse(text), Ok(Rate { bytes, operations }), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "on",
            "bytes",
            "bytes=",
            "bytes=1",
            "bytes=0/1",
            "bytes=1/0",
            "bytes=1/3600001",
            "bytes=+1/1",
            "bytes=-1/1",
            "bytes=1/1+",
            "bytes=1/1,",
            "bytes=1/1,bytes=2/2",
            "packets=1/1",
            "bytes=1125899906842625/1",
            "bytes=99999999999999999999/1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_annotation_takes_the_place_of_the_configurations_key() {
        let configured = RateLimits::of_keys(|key| match key {
            "net_tx_rate" => Some("bytes=10/10"),
            "disk_rate" => Some("operations=1/1"),
            _ => None,
        });
        let annotated = |text| {
            let of = move |name: &str| (name == "org.rvm.disk-rate").then_some(text);
            RateLimits::of_annotations(of)
        };
        let (configured, off) = (configured.unwrap(), annotated("off").unwrap());
        let rates = off.or(configured);
        assert_eq!(rates.disk, Rate::default());
        assert_eq!(rates.net_tx.bytes, bucket(10, 10, 0));
        let place = off.first(configured).unwrap();
        assert_eq!(place, "net_tx_rate of rvm's configuration");
        let place = annotated("bytes=1/1").unwrap().first(RateLimits::default());
        assert_eq!(place.unwrap(), "annotations[\"org.rvm.disk-rate\"]");
        assert_eq!(off.first(RateLimits::default()), None);
        assert_eq!(annotated("slow").unwrap_err().0, "org.rvm.disk-rate");
    }
}

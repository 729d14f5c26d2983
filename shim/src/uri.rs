//! Where containerd wants a process's output: a FIFO by its path, a file, or a program that logs.

use std::path::PathBuf;

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uri {
    /// Nowhere.
    None,
    /// A FIFO, or what else has this path.
    Path(PathBuf),
    /// A file that is appended to, and made if it is not there.
    File(PathBuf),
    /// A program that reads the output, and its arguments.
    Binary(PathBuf, Vec<String>),
}

/// Reads what containerd says of an output. The error is the scheme that is not known.
pub fn parse(text: &str) -> Result<Uri, String> {
    if text.is_empty() {
        return Ok(Uri::None);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Uri::Path(text.into()));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(decode(path, false));
    match scheme {
        "fifo" => Ok(Uri::Path(path)),
        "file" => Ok(Uri::File(path)),
        "binary" => Ok(Uri::Binary(path, arguments(query))),
        other => Err(other.to_owned()),
    }
}

/// The names and values of a query, one behind the other.
fn arguments(query: &str) -> Vec<String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let both = |pair: &str| match pair.split_once('=') {
        Some((name, value)) => vec![decode(name, true), decode(value, true)],
        None => vec![decode(pair, true), String::new()],
    };
    pairs.flat_map(both).collect()
}

/// Replaces %XX, and in a query + by a space.
fn decode(text: &str, in_query: bool) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hexadecimal(*high, *low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if in_query && first == b'+' {
                    b' '
                } else {
                    first
                });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_destination_is_understood() {
        assert_eq!(parse(""), Ok(Uri::None));
        assert_eq!(parse("/run/fifo/1"), Ok(Uri::Path("/run/fifo/1".into())));
        assert_eq!(parse("file:///a%20b"), Ok(Uri::File("/a b".into())));
        assert_eq!(
            parse("binary:///bin/log?--tag=a+b%2B&-q"),
            Ok(Uri::Binary(
                "/bin/log".into(),
                ["--tag", "a b+", "-q", ""].map(str::to_owned).to_vec()
            ))
        );
        assert_eq!(parse("npipe:////./pipe"), Err("npipe".to_owned()));
    }

    #[test]
    fn a_percent_sign_that_escapes_nothing_stands_for_itself() {
        assert_eq!(parse("file:///100%/%zz"), Ok(Uri::File("/100%/%zz".into())));
    }
}

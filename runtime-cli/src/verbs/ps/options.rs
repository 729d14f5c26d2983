//! The options of ps(1) that `rvm ps` takes after the container.

use anyhow::{Context as _, bail};

use super::columns::Column;

/// The columns that the options ask for; those of -ef, as with runc, if there are none.
///
/// runc runs ps(1) on the host, where the guest's processes are not seen. Options that choose
/// processes (-a, -A, -d, -e and -x) have no effect: all are shown.
pub fn parse(options: &[String]) -> anyhow::Result<Vec<Column>> {
    let mut columns = Vec::new();
    let mut is_full = options.is_empty();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut letters = option.strip_prefix('-').unwrap_or_default();
        if letters.is_empty() {
            return refuse(option);
        }
        while let Some(letter) = letters.chars().next() {
            letters = &letters[letter.len_utf8()..];
            match letter {
                'a' | 'A' | 'd' | 'e' | 'x' => {}
                'f' => is_full = true,
                'o' => {
                    // The list is the rest of the argument, or the next one.
                    let list = match std::mem::take(&mut letters) {
                        "" => options.next().map(String::as_str),
                        rest => Some(rest),
                    };
                    let list = list.context("ps option -o needs a list of columns")?;
                    columns.extend(parse_list(list)?);
                }
                _ => return refuse(option),
            }
        }
    }
    Ok(match (columns.is_empty(), is_full) {
        (false, _) => columns,
        (true, true) => Column::full(),
        (true, false) => Column::short(),
    })
}

fn refuse(option: &str) -> anyhow::Result<Vec<Column>> {
    bail!(
        "ps option {option:?} is not supported, only -a, -A, -d, -e, -x, -f and -o are; to have \
         another, execute ps in the container"
    )
}

/// Columns with commas or blanks between them, each with a header of its own after `=`.
fn parse_list(list: &str) -> anyhow::Result<Vec<Column>> {
    let items = list.split([',', ' ']).filter(|item| !item.is_empty());
    let columns = items.map(|item| {
        let (name, header) = match item.split_once('=') {
            Some((name, header)) => (name, Some(header)),
            None => (item, None),
        };
        Column::new(name, header).with_context(|| {
            format!("ps column {name:?} is not supported; to have it, execute ps in the container")
        })
    });
    let columns = columns.collect::<anyhow::Result<Vec<_>>>()?;
    match columns.is_empty() {
        true => bail!("ps option -o needs a list of columns"),
        false => Ok(columns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::agent::ListProcessesResponse;
    use rvm_sandbox::host::users::UserNames;

    /// The headers of the table, or the error.
    fn headers(options: &[&str]) -> String {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let empty = ListProcessesResponse::default();
        match parse(&options) {
            Ok(columns) => super::super::columns::table(&empty, &UserNames::default(), &columns)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn options_choose_the_columns() {
        let full = "UID PID PPID C STIME TTY TIME CMD";
        for (options, expected) in [
            (&[][..], full),
            (&["-ef"], full),
            (&["-e", "-f"], full),
            (&["-Af"], full),
            (&["-e"], "PID TTY TIME CMD"),
            (&["-e", "-x"], "PID TTY TIME CMD"),
            (&["-eo", "pid,comm"], "PID COMMAND"),
            (&["-opid,user", "-o", "args=WHAT"], "PID USER WHAT"),
            (&["-e", "-f", "-o", "pid ppid"], "PID PPID"),
        ] {
            assert_eq!(headers(options), expected, "{options:?}");
        }
    }

    #[test]
    fn other_options_and_columns_are_refused_by_name() {
        for (options, expected) in [
            (&["aux"][..], "ps option \"aux\" is not supported"),
            (
                &["-e", "--forest"],
                "ps option \"--forest\" is not supported",
            ),
            (&["-efH"], "ps option \"-efH\" is not supported"),
            (&["-"], "ps option \"-\" is not supported"),
            (&["-o", "pid,wchan"], "ps column \"wchan\" is not supported"),
            (&["-o"], "ps option -o needs a list"),
            (&["-o", ","], "ps option -o needs a list"),
        ] {
            let message = headers(options);
            assert!(message.starts_with(expected), "{options:?}: {message}");
        }
    }
}

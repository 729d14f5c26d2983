//! rvm template

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rvm_sandbox::cgroup::limit_mib;
use rvm_sandbox::config::Config;
use rvm_sandbox::engine::{Created, TemplateInfo, choice};
use rvm_sandbox::sandbox::create_template;
use serde::Serialize;

use super::block_on;
use super::list::columns;
use super::update::bytes;
use crate::cli::{Format, Global, TemplateCreateArgs, TemplateRemoveArgs, TemplateVerb};

/// A command that takes longer says what it does.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lists, makes and removes templates.
pub fn run(global: &Global, verb: &TemplateVerb) -> anyhow::Result<ExitCode> {
    let config = global.config()?;
    match verb {
        TemplateVerb::List(args) => list(&config, args.format)?,
        TemplateVerb::Create(args) => create(config, args)?,
        TemplateVerb::Remove(args) => remove(&config, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, format: Format) -> anyhow::Result<()> {
    let templates = choice::choose(config)?.engine.templates(config)?.list()?;
    let mut out = std::io::stdout();
    match format {
        Format::Table => write!(out, "{}", table(&templates))?,
        Format::Json => {
            let reports: Vec<Report> = templates.iter().map(Report::of).collect();
            writeln!(out, "{}", serde_json::to_string(&reports)?)?;
        }
    }
    Ok(())
}

fn create(mut config: Config, args: &TemplateCreateArgs) -> anyhow::Result<()> {
    if let Some(text) = &args.memory {
        let bytes = bytes(text).context("invalid value for --memory")?;
        let Some(mib) = limit_mib(bytes) else {
            bail!("invalid value for --memory: {text} is no limit");
        };
        config.memory_mib = mib;
    }
    if let Some(vcpus) = args.vcpus {
        config.vcpus = vcpus;
    }
    let created = block_on(async {
        let mut create = std::pin::pin!(create_template(&config));
        tokio::select! {
            created = &mut create => return created,
            () = tokio::time::sleep(PATIENCE) => {}
        }
        // If the stream is closed, nobody waits.
        let _ = writeln!(std::io::stderr(), "a machine boots, to be saved");
        create.await
    })??;
    let text = match created {
        Created::Made(id) => format!("made the template {id}"),
        Created::Existed(id) => format!("there is a template already: {id}"),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn remove(config: &Config, args: &TemplateRemoveArgs) -> anyhow::Result<()> {
    let templates = choice::choose(config)?.engine.templates(config)?;
    if args.all {
        return Ok(templates.remove_all()?);
    }
    for id in &args.ids {
        templates.remove(id)?;
    }
    Ok(())
}

/// A template in the list's JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    id: &'a str,
    vcpus: u8,
    memory_mib: u64,
    network_slots: usize,
    disk_slots: usize,
    bytes: u64,
    created: String,
    used: String,
    current: bool,
}

impl<'a> Report<'a> {
    fn of(template: &'a TemplateInfo) -> Self {
        Self {
            id: &template.id,
            vcpus: template.size.vcpus,
            memory_mib: template.size.memory_mib,
            network_slots: template.net_slots,
            disk_slots: template.disk_slots,
            bytes: template.bytes,
            created: time(template.made),
            used: time(template.used),
            current: template.is_current,
        }
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn table(templates: &[TemplateInfo]) -> String {
    let heading = [
        "ID", "VCPUS", "MEMORY", "DISKS", "SIZE", "CREATED", "USED", "STATUS",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(templates.iter().map(|template| {
        [
            template.id.clone(),
            template.size.vcpus.to_string(),
            format!("{} MiB", template.size.memory_mib),
            template.disk_slots.to_string(),
            format!("{} MiB", template.bytes.div_ceil(1 << 20)),
            time(template.made),
            time(template.used),
            match template.is_current {
                true => "current".to_owned(),
                false => "stale".to_owned(),
            },
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_has_its_heading() {
        let line = table(&[]);
        assert!(line.starts_with("ID          VCPUS"), "{line}");
        assert!(line.ends_with("STATUS\n"), "{line}");
    }
}

//! `audit verify`, the same as a part of the main program or by itself.

use std::{fs, path::PathBuf};

use anyhow::Context;
use orgstream_events::{Chain, DeletionReceipt};
use orgstream_transparency::{PolicyFile, Receipt, SignedNote};

use crate::{
    KnownHead, Outcome, Report, Request,
    account::{Balance, Ledger},
    output, verify, verify_account,
};

/// Verify an exported audit log: no network, no database, no account, and nothing is written.
///
/// Exit codes: 0 valid and witnessed, 10 valid but not witnessed, 20 valid but incomplete, 30 diverges from a head that you
/// hold, 40 invalid. 2 means that the command itself could not be carried out.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The bundle's folder.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The log's public key (`log.vkey`), which you got from elsewhere than from the bundle.
    #[arg(long, value_name = "FILE")]
    pin: PathBuf,
    /// Which witnesses you believe, as a C2SP tlog-policy.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A checkpoint of the log that you kept from before. May be repeated.
    #[arg(long, value_name = "FILE")]
    known: Vec<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Verifies, prints the report to standard output, and returns the outcome, whether or not the report could be
    /// written.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let json = self.json;
        let report = verify(&self.request()?);
        let text = if json { to_json(&report)? } else { report.to_string() };
        Ok(output::told(report.outcome(), output::say(format_args!("{}", text.trim_end()))))
    }

    fn request(self) -> anyhow::Result<Request> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
        let pin = String::from_utf8(read(&self.pin)?).with_context(|| format!("{} is no key", self.pin.display()))?;
        let pin = pin.trim_end().parse().with_context(|| format!("{} is not the key of a log", self.pin.display()))?;
        let policy = self
            .policy
            .as_ref()
            .map(|path| PolicyFile::parse(&read(path)?).with_context(|| format!("{} is no policy", path.display())));
        let known = self.known.iter().map(|path| {
            let name = path.display().to_string();
            let note = SignedNote::parse(&read(path)?).with_context(|| format!("{name} is no checkpoint"))?;
            Ok(KnownHead { name, note })
        });
        Ok(Request {
            bundle: self.bundle,
            pin,
            policy: policy.transpose()?,
            known: known.collect::<anyhow::Result<_>>()?,
        })
    }
}

/// Compute an organization's balances again from an exported audit log: no network, no database, no account, and nothing is
/// written.
///
/// The log is verified as without `account`, with the same exit codes. Each event of the account must follow from those before it:
/// one that uses more than was left is a finding, and the log is invalid (40). For each meter, what was granted is what was used,
/// lapsed, was withdrawn, is held and is left.
#[derive(Debug, clap::Args)]
pub struct AccountArgs {
    #[command(flatten)]
    verify: VerifyArgs,
}

impl AccountArgs {
    /// Verifies, prints the report and the balances to standard output, and returns the outcome, whether or not they could be
    /// written.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let json = self.verify.json;
        let (report, ledger) = verify_account(&self.verify.request()?);
        let text = if json { account_to_json(&report, &ledger)? } else { format!("{report}\n{}", in_words(&ledger)) };
        Ok(output::told(report.outcome(), output::say(format_args!("{}", text.trim_end()))))
    }
}

/// Verify the receipt of a deletion: no network, no database, no account, and nothing is written.
///
/// Exit codes: 0 it is signed by the key, and says that no row is left; 40 it is not, or does not. 2 means that the command itself could
/// not be carried out.
#[derive(Debug, clap::Args)]
pub struct ReceiptArgs {
    /// The receipt.
    #[arg(value_name = "FILE")]
    receipt: PathBuf,
    /// The public key of the audit logs (`log.vkey`), which you got from elsewhere than with the receipt.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Print what the receipt says as JSON, as it was signed.
    #[arg(long)]
    json: bool,
}

impl ReceiptArgs {
    /// Verifies, prints what the receipt says to standard output, and returns the outcome, whether or not it could be written.
    pub fn run(self) -> anyhow::Result<Outcome> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
        let key = String::from_utf8(read(&self.key)?).with_context(|| format!("{} is no key", self.key.display()))?;
        let key = key.trim_end().parse().with_context(|| format!("{} is not the key of a log", self.key.display()))?;
        let verified = SignedNote::parse(&read(&self.receipt)?).map_err(anyhow::Error::from).and_then(|note| {
            let statement = Receipt::read(&note, &key)?.statement;
            let receipt: DeletionReceipt = serde_json::from_str(&statement)?;
            anyhow::ensure!(serde_json::to_string(&receipt)? == statement, "the receipt is not in its canonical form");
            anyhow::ensure!(receipt.rows.values().all(|rows| rows.left == 0), "the receipt says that rows are left");
            Ok((receipt, statement))
        });
        Ok(match verified {
            Ok((_, statement)) if self.json => output::told(Outcome::Valid, output::say(format_args!("{statement}"))),
            Ok((receipt, _)) => output::told(Outcome::Valid, output::say(format_args!("{}", told(&receipt)))),
            Err(error) => {
                output::note(format_args!("invalid: {}", Chain(error.as_ref())));
                Outcome::Invalid
            }
        })
    }
}

/// Returns what a receipt says, for people.
fn told(receipt: &DeletionReceipt) -> String {
    let rows: u64 = receipt.rows.values().map(|rows| rows.erased).sum();
    let mut lines = vec![
        format!("valid: {} was deleted", receipt.org_id),
        format!("requested {}, sealed {}, done {}", receipt.requested_at, receipt.sealed_at, receipt.completed_at),
        format!("audit log: {} events, root {}; last event {}", receipt.log_size, receipt.log_root, receipt.fence),
        format!("{rows} rows erased of {} tables, 0 left", receipt.rows.len()),
        format!("{} secrets destroyed", receipt.secrets_destroyed),
    ];
    lines.extend(receipt.invoice.map(|number| format!("last invoice: {number}")));
    lines.extend(receipt.identity_kept.as_ref().map(|kept| format!("kept: {} at {}", kept.external_id, kept.provider)));
    lines.push(match receipt.stream_bytes_removed_at {
        Some(at) => format!("the bytes of its events were removed {at}"),
        None => "the bytes of its events wait for the next rewrite of their stream".to_owned(),
    });
    lines.join("\n")
}

fn account_to_json(report: &Report, ledger: &Ledger) -> anyhow::Result<String> {
    let mut value = report_value(report)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("balances".to_owned(), serde_json::to_value(ledger.balances())?);
    }
    Ok(serde_json::to_string_pretty(&value)?)
}

fn in_words(ledger: &Ledger) -> String {
    let balances = ledger.balances();
    if balances.is_empty() {
        return "the account never had anything".to_owned();
    }
    let mut lines = Vec::new();
    for Balance { meter, granted, used, lapsed, withdrawn, held, left, months } in balances {
        lines.push(format!(
            "{meter}: {granted} granted = {used} used + {lapsed} lapsed + {withdrawn} withdrawn + {held} held + {left} left"
        ));
        lines.extend(months.into_iter().map(|(month, used)| format!("  {month}  {used} used")));
    }
    lines.join("\n")
}

fn to_json(report: &Report) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&report_value(report)?)?)
}

fn report_value(report: &Report) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(report)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("outcome".to_owned(), serde_json::to_value(report.outcome())?);
        fields.insert("code".to_owned(), report.outcome().code().into());
    }
    Ok(value)
}

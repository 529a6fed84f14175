//! Frames that come in by a device and that no redirect has taken are dropped and
//! counted, before the namespace's stack sees them: a table of nf_tables, whose hook
//! comes after that of traffic control. (Traffic control's own drop is a module that
//! not every kernel has.)

use super::namespace::Namespace;
use super::nftables::{Attributes, Family, Kind, Rule, Transaction, Verdict, count};
use crate::{Error, Refusal};

const TABLE: &str = "kina";

/// `NF_NETDEV_INGRESS`.
const INGRESS: u32 = 0;

/// Drops what comes in by `device` and goes nowhere.
pub(super) async fn open(namespace: &Namespace, device: &str) -> Result<(), Error> {
    let name = device.to_owned();
    let done = namespace.run(move || if is_complete(&name)? { Ok(()) } else { make(&name) });
    done.await?.map_err(|refusal| failed(namespace, device, "drop forged frames of", refusal))
}

/// Whether that is so.
pub(super) async fn is_open(namespace: &Namespace, device: &str) -> Result<bool, Error> {
    let name = device.to_owned();
    let looked = namespace.run(move || is_complete(&name));
    looked.await?.map_err(|refusal| failed(namespace, device, "look at what is dropped of", refusal))
}

/// Takes it back; none is fine.
pub(super) async fn close(namespace: &Namespace, device: &str) -> Result<(), Error> {
    let done = namespace.run(|| {
        let table = Attributes::new().text(1, TABLE);
        match Transaction::new(Family::Netdev).delete(Kind::DeleteTable, &table).commit() {
            // A kernel without nf_tables has none either.
            Err(refusal)
                if matches!(
                    refusal.number(),
                    Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    });
    done.await?.map_err(|refusal| failed(namespace, device, "no longer drop frames of", refusal))
}

/// A chain of the device's name with one rule. It goes with the device.
fn make(device: &str) -> Result<(), Refusal> {
    let hook = Attributes::new().number(1, INGRESS).number(2, 0).text(3, device);
    let chain = Attributes::new().text(1, TABLE).text(3, device).nest(4, hook).text(7, "filter");
    let all = Attributes::new().text(1, TABLE).text(2, device);
    let rule = Rule::new().count().verdict(Verdict::Drop);
    Transaction::new(Family::Netdev)
        .create(Kind::NewTable, &Attributes::new().text(1, TABLE))
        .create(Kind::NewChain, &chain)
        .delete(Kind::DeleteRule, &all)
        .create(Kind::NewRule, &all.nest(4, rule.into_attributes()))
        .commit()
}

fn is_complete(device: &str) -> Result<bool, Refusal> {
    let chain = Attributes::new().text(1, TABLE).text(2, device);
    match count(Family::Netdev, Kind::GetRule, &chain, true) {
        Ok(rules) => Ok(rules == 1),
        Err(refusal) if refusal.number() == Some(libc::ENOENT) => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

fn failed(namespace: &Namespace, device: &str, operation: &'static str, source: Refusal) -> Error {
    Error::Kernel { operation, object: device.to_owned(), namespace: namespace.path().to_path_buf(), source }
}

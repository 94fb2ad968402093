//! The statements of a report on a line about what its runs do not prove.

use super::findings::{WELL_OBSERVED, counted};
use super::input::LinkMedium;
use super::{LineReport, OutageExtent};

/// Lists what the runs, monitors and outages of `report` do not prove, one sentence or paragraph for each limit.
pub(super) fn all(report: &LineReport) -> Vec<String> {
    let method = &report.method;
    let mut limits = Vec::new();
    if method.runs > 0 {
        limits.push(
            "A rate is that of the whole path between this device and the other end: the home network, the line, the \
             provider's network, and the networks up to the other end. If the network limited a run, the result does \
             not show which of these parts was the limit."
                .to_owned(),
        );
        limits.push(
            "Traffic of other devices at home that does not pass this device is not seen. It can slow a run down."
                .to_owned(),
        );
    }
    if method.interfaces.iter().any(|(interface, _)| interface.kind == LinkMedium::Wired) {
        limits.push(
            "Wired means that the driver of this device's interface reports a speed and a duplex mode. A wireless bridge \
             behind that interface would not be seen, and a virtual interface can look the same."
                .to_owned(),
        );
    }
    let unknown = method.interfaces.iter().filter(|(interface, _)| interface.kind == LinkMedium::Unknown);
    let unknown = method.without_interface + unknown.map(|(_, runs)| runs).sum::<usize>();
    if unknown > 0 {
        let which = if unknown == method.runs { "the".to_owned() } else { format!("{unknown} of {}", method.runs) };
        limits.push(format!("It is not known whether this device was connected by cable in {which} runs; they count."));
    }
    if let [only] = method.other_ends.as_slice() {
        limits.push(format!(
            "All runs went to one other end ({}). A limit there, or on the way to it, would look like a slow line.",
            only.name
        ));
    }
    if method.other_ends.iter().any(|end| !end.is_reflector) {
        limits.push("The identity of a server that is no reflector was not verified.".to_owned());
    }
    if method.runs > 0 && method.hours_of_day.len() < 24 {
        limits.push(format!(
            "Runs began in {} of the 24 hours of the day, on {}. The other hours were not measured.",
            method.hours_of_day.len(),
            counted(method.days, "day", "days")
        ));
    }
    let [_, unsynchronised, unknown] = method.clocks;
    if unsynchronised + unknown > 0 {
        limits.push(format!(
            "In {} the clock of this device was not known to be synchronised: their times of day may be wrong.",
            counted(unsynchronised + unknown, "run", "runs")
        ));
    }
    if report.directions.iter().any(|direction| direction.unknown_limit > 0) {
        let count = report.directions.iter().map(|direction| direction.unknown_limit).sum();
        let rates = counted(count, "rate", "rates");
        limits.push(format!("It is not known what limited {rates} among those that count."));
    }
    if report.outages.sum(OutageExtent::BeyondGateway).is_some() || report.outages.observed_hours > 0 {
        limits.push(
            "An outage beyond the router is one of everything there that was probed. Few targets are weaker evidence than \
             many. Time without monitoring is not counted as an outage."
                .to_owned(),
        );
    }
    let (observed, period) = (report.outages.observed_hours, report.outages.period_hours);
    if observed > 0 && (observed as f64) < WELL_OBSERVED * period as f64 {
        limits.push(format!(
            "Monitors probed beyond the router in {observed} of the period's {period} hours. Other outages are missing here, \
             and the loss of the monitors is that of these hours."
        ));
    }
    if report.unreadable > 0 {
        let results = counted(report.unreadable, "saved result", "saved results");
        limits.push(format!("{results} of the period cannot be read and are missing here."));
    }
    limits.push(
        "The intervals assume that runs are independent of each other. Runs shortly after one another are not."
            .to_owned(),
    );
    limits.push(
        "This report was made on the customer's device from its own records. It is not signed, and no third party \
         measured."
            .to_owned(),
    );
    limits
}

//! The series of a result document: the measurements of each interval, and the kernels' records of the TCP streams.
//! They make up most of the document's size.

use super::{ByLoad, LatencyResult, ResultDocument, TcpOfEnds, ThroughputResult};

impl ResultDocument {
    /// Whether the document contains the measurements of each interval, or the kernels' records of the TCP streams.
    pub fn has_series(&self) -> bool {
        self.all_measured().any(|(_, _, direction)| direction.intervals.is_some() || !direction.tcp.is_empty())
            || self.latency.iter().any(|(_, latency)| latency.intervals.is_some())
    }

    /// Removes the measurements of each interval, and the kernels' records of the TCP streams. All other values stay
    /// unchanged.
    pub fn remove_series(&mut self) {
        let both = self.bidir.as_mut().map(|bidir| [bidir.download.as_mut(), bidir.upload.as_mut()]);
        let directions = [self.download.as_mut(), self.upload.as_mut()].into_iter().chain(both.into_iter().flatten());
        for ThroughputResult { intervals, tcp, .. } in directions.flatten() {
            *intervals = None;
            *tcp = TcpOfEnds::default();
        }
        let ByLoad { idle, download, upload, bidir } = &mut self.latency;
        for LatencyResult { intervals, .. } in [idle, download, upload, bidir].into_iter().flatten() {
            *intervals = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::document::example;

    #[test]
    fn the_series_is_removed_and_nothing_else() {
        let whole = example::full();
        let mut short = whole.clone();
        short.remove_series();
        assert!(whole.has_series() && !short.has_series());
        let text = short.to_text().unwrap();
        assert!(!text.contains("\"intervals\"") && !text.contains("\"tcp\": {"), "{text}");
        assert_eq!(short.download.as_ref().unwrap().goodput_bps, whole.download.as_ref().unwrap().goodput_bps);
        // The example without these keys is the same document.
        let mut expected = serde_json::to_value(&whole).unwrap();
        remove_keys(&mut expected);
        assert_eq!(serde_json::to_value(&short).unwrap(), expected);
        assert!(!example::bare().has_series());
    }

    fn remove_keys(value: &mut serde_json::Value) {
        if let Some(object) = value.as_object_mut() {
            object.remove("intervals");
            // `engine` may have the value "tcp", too, but only the records are an object.
            if object.get("tcp").is_some_and(serde_json::Value::is_object) {
                object.remove("tcp");
            }
            object.values_mut().for_each(remove_keys);
        } else if let Some(array) = value.as_array_mut() {
            array.iter_mut().for_each(remove_keys);
        }
    }
}

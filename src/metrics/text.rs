//! The text format 0.0.4 of Prometheus ("Exposition formats" of its documentation).

use std::fmt::Write as _;

/// The `Content-Type` of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the values of a metric mean over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets, with their sum and number.
    Histogram,
    /// The sum and number of observations.
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        }
    }
}

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// Begins a metric; its samples follow.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Samples<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        Samples { name, text: &mut self.text }
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

/// Labels of a sample: names and values.
pub type Labels<'a> = [(&'a str, &'a str)];

/// Takes the samples of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    name: &'static str,
    text: &'a mut String,
}

impl Samples<'_> {
    /// A whole number.
    pub fn count(&mut self, labels: &Labels<'_>, value: u64) {
        self.sample("", labels, None, value);
    }

    /// Any number.
    pub fn value(&mut self, labels: &Labels<'_>, value: f64) {
        self.sample("", labels, None, value);
    }

    /// The number of observations and their sum.
    pub fn summary(&mut self, labels: &Labels<'_>, count: u64, sum: f64) {
        self.sample("_sum", labels, None, sum);
        self.sample("_count", labels, None, count);
    }

    /// Observations by bucket (not cumulative); the last bucket has no bound.
    pub fn histogram(&mut self, labels: &Labels<'_>, bounds: &[f64], buckets: &[u64], sum: f64) {
        let mut all = 0u64;
        for (index, bucket) in buckets.iter().enumerate() {
            all += bucket;
            let bound = bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.sample("_bucket", labels, Some(&bound), all);
        }
        self.summary(labels, all, sum);
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: &Labels<'_>,
        bound: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        let bound = bound.map(|bound| ("le", bound));
        let labels: Vec<String> = labels
            .iter()
            .copied()
            .chain(bound)
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_read_as_the_format_says() {
        let mut page = Page::default();
        page.metric("a_total", Kind::Counter, "One\nline.").count(&[("volume", "a\"b\\c\nd")], 3);
        page.metric("b_seconds", Kind::Histogram, "Time.").histogram(
            &[("op", "read")],
            &[0.001, 0.5],
            &[2, 0, 1],
            1.5,
        );
        assert_eq!(
            page.finish(),
            "# HELP a_total One\\nline.\n# TYPE a_total counter\na_total{volume=\"a\\\"b\\\\c\\nd\"} 3\n\
             # HELP b_seconds Time.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{op=\"read\",le=\"0.001\"} 2\nb_seconds_bucket{op=\"read\",le=\"0.5\"} 2\n\
             b_seconds_bucket{op=\"read\",le=\"+Inf\"} 3\nb_seconds_sum{op=\"read\"} 1.5\n\
             b_seconds_count{op=\"read\"} 3\n"
        );
    }
}

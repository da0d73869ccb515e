//! The numbers of a running engine in the text format of Prometheus.
//!
//! Numbers are kept by whoever counts; here they are put in order when they are asked for. How many series there are is
//! bounded, however many inputs there are.

use super::View;
use crate::capture::live;
use crate::histogram::{BUCKETS, Histogram};
use crate::ledger::{Counts, InputReport, Losses};
use prometheus::TextEncoder;
use prometheus::proto;
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use std::time::Duration;

/// Inputs that have series of their own; the rest are summed.
const INPUTS: usize = 100;
/// Name and format of that sum.
const OTHER: &str = "other";
/// Characters of a label that are shown.
const MOST_LABEL: usize = 200;

/// Plain numbers of a run, as they are at one time.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Inputs, each with the workers' accounts of it.
    pub inputs: Vec<(InputReport, Counts)>,
    /// Frames that were decoded by this process, also those that are not committed yet.
    pub decoded: u64,
    /// Up to when all is in, nanoseconds since the Unix epoch.
    pub watermark: Option<u64>,
    /// How far the clocks of probes are from ours, by their names: nanoseconds, positive where they are ahead.
    pub skews: Vec<(String, i64)>,
    /// Windows written, each once.
    pub windows: u64,
    /// Commits.
    pub commits: u64,
    /// When the last was, nanoseconds since the Unix epoch.
    pub last_commit: Option<u64>,
    /// Closed epochs that wait to be written.
    pub commit_queue: u64,
    /// For how long the run has had pending work without making progress; otherwise zero.
    pub stalled: Duration,
    /// Alerts raised.
    pub raised: u64,
    /// Alerts withdrawn.
    pub withdrawn: u64,
    /// Alerts that are active.
    pub active: u64,
    /// Keys for which a rule holds without an alert.
    pub left_out: u64,
    /// When the run began, nanoseconds since the Unix epoch.
    pub began: u64,
    /// Seconds from when all workers have left a window's epoch until it is written.
    pub close: Histogram,
    /// Writers behind the outbox.
    pub writers: Vec<WriterFigures>,
}

/// Plain numbers of a writer.
#[derive(Clone, Debug, Default)]
pub struct WriterFigures {
    /// Its name.
    pub name: String,
    /// What kind of writer it is.
    pub kind: &'static str,
    /// Whether the engine waits for it.
    pub required: bool,
    /// Windows written, revisions too.
    pub windows: u64,
    /// Rows written.
    pub rows: u64,
    /// Tries that failed.
    pub retries: u64,
    /// Windows that were left out for it.
    pub dropped: u64,
    /// Windows that wait for it.
    pub queue_windows: u64,
    /// Bytes of them.
    pub queue_bytes: u64,
    /// Whether its last try succeeded.
    pub up: bool,
    /// When it has last written, nanoseconds since the Unix epoch.
    pub last_write: Option<u64>,
}

/// As Prometheus has it.
fn histogram(histogram: &Histogram) -> proto::Histogram {
    let (fallen, sum) = histogram.counts();
    let mut count = 0;
    let bucket = |(bound, fallen): (f64, u64)| {
        count += fallen;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(fallen).map(bucket).collect();
    let mut told = proto::Histogram::default();
    told.set_sample_count(count);
    told.set_sample_sum(sum);
    // The encoder adds the bucket without a bound.
    told.set_bucket(buckets[..BUCKETS.len()].to_vec());
    told
}

/// What is known of an engine, as text.
pub(super) fn text(view: &dyn View) -> Result<String, prometheus::Error> {
    let recent = view.recent();
    told(&view.measured(), (recent.len() as u64, recent.bytes()), live::now())
}

/// These numbers as text, with the windows kept and their bytes, at this time.
fn told(measured: &Measured, (windows, bytes): (u64, u64), now: u64) -> Result<String, prometheus::Error> {
    let mut families = Families::default();
    families.inputs(&measured.inputs);
    let alone = |value: f64| vec![(Vec::new(), value)];
    let count = |value: u64| alone(value as f64);
    families.counter(
        "decoded_packets_total",
        "Frames decoded by this process, also those that are not committed yet.",
        count(measured.decoded),
    );
    families.counter("windows_written_total", "Windows written, each once.", count(measured.windows));
    families.counter("commits_total", "Commits.", count(measured.commits));
    let events = [("raised", measured.raised), ("withdrawn", measured.withdrawn)];
    families.counter(
        "alerts_events_total",
        "What has become of alerts.",
        events.map(|(event, value)| (labels(&[("event", event)]), value as f64)),
    );
    let time = |time: Option<u64>| time.map(|time| (Vec::new(), seconds(time)));
    families.gauge("watermark_timestamp_seconds", "Up to when all is in.", time(measured.watermark));
    let lag = |watermark: u64| (Vec::new(), seconds(now.saturating_sub(watermark)));
    families.gauge("watermark_lag_seconds", "How long ago that is, or 0.", measured.watermark.map(lag));
    let ahead = |watermark: u64| (Vec::new(), seconds(watermark.saturating_sub(now)));
    let help =
        "How far it is ahead of this machine's clock, or 0: a probe's clock or a capture's times are wrong.";
    families.gauge("watermark_ahead_seconds", help, measured.watermark.map(ahead));
    let skew = |(probe, skew): &(String, i64)| {
        let probe: String = probe.chars().take(MOST_LABEL).collect();
        (labels(&[("probe", &*probe)]), *skew as f64 / 1e9)
    };
    let help =
        "How far a probe's clock is ahead of this machine's, less the time that its last message took.";
    families.gauge("probe_clock_skew_seconds", help, measured.skews.iter().take(INPUTS).map(skew));
    families.gauge("last_commit_timestamp_seconds", "When the last commit was.", time(measured.last_commit));
    families.gauge(
        "commit_queue_length",
        "Closed epochs that wait to be written.",
        count(measured.commit_queue),
    );
    families.gauge(
        "stalled_seconds",
        "Seconds the run has had pending work without making progress; otherwise 0.",
        alone(measured.stalled.as_secs_f64()),
    );
    families.gauge("alerts_active", "Alerts that are active.", count(measured.active));
    let help =
        "Keys that match a rule but raised no alert because the rule is at its limit of active alerts.";
    families.gauge("alerts_left_out", help, count(measured.left_out));
    families.gauge("recent_windows", "Windows that can be asked for over HTTP.", count(windows));
    families.gauge("recent_bytes", "Memory of these windows.", count(bytes));
    families.gauge("start_time_seconds", "When the run began.", time(Some(measured.began)));
    let mut close = Metric::default();
    close.set_histogram(histogram(&measured.close));
    let help = "From when all workers have left a window's epoch until it is written.";
    families.add("window_close_seconds", help, MetricType::HISTOGRAM, vec![close]);
    families.writers(&measured.writers);
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    families.gauge("build_info", "The version of the program.", [(version, 1.0)]);
    TextEncoder::new().encode_to_string(&families.0)
}

fn seconds(time: u64) -> f64 {
    time as f64 / 1e9
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    };
    pairs.iter().map(label).collect()
}

/// An input's name and format, and its numbers.
#[derive(Default)]
struct Input {
    name: String,
    format: String,
    counts: Counts,
    losses: Option<Losses>,
    repeated: u64,
}

/// Inputs with series of their own, then all others; those of one name and format are one.
fn inputs(all: &[(InputReport, Counts)]) -> Vec<Input> {
    let mut inputs: Vec<Input> = Vec::new();
    let mut other = Input { name: OTHER.into(), format: OTHER.into(), ..Input::default() };
    let mut has_other = false;
    for (report, decoded) in all {
        let [name, format] =
            [&report.name, &report.format].map(|label| label.chars().take(MOST_LABEL).collect::<String>());
        let known = inputs.iter().position(|input| input.name == name && input.format == format);
        let input = match known {
            Some(known) => &mut inputs[known],
            None if inputs.len() < INPUTS => {
                inputs.push(Input { name, format, ..Input::default() });
                inputs.last_mut().expect("one was added")
            }
            None => {
                has_other = true;
                &mut other
            }
        };
        input.counts += report.before;
        input.counts += *decoded;
        input.repeated = input.repeated.saturating_add(report.repeated);
        if let Some(more) = report.losses {
            let losses = input.losses.get_or_insert_default();
            let add = |lost: &mut u64, more: u64| *lost = lost.saturating_add(more);
            add(&mut losses.interface, more.interface);
            add(&mut losses.kernel, more.kernel);
            add(&mut losses.probe, more.probe);
            add(&mut losses.bus, more.bus);
        }
    }
    inputs.extend(has_other.then_some(other));
    inputs
}

/// A number of an input: its name, what it is, and where it is found.
type InputNumber = (&'static str, &'static str, fn(&Input) -> u64);

const INPUT_NUMBERS: [InputNumber; 9] = [
    ("packets_read_total", "Frames read.", |input| input.counts.read),
    ("packets_counted_total", "Packets in the snapshots.", |input| input.counts.counted),
    ("packets_filtered_total", "Frames that the filter took out.", |input| input.counts.filtered),
    ("packets_non_ip_total", "Frames without an IP header.", |input| input.counts.non_ip),
    ("packets_malformed_total", "Frames with a broken IP header.", |input| input.counts.malformed),
    ("packets_late_total", "Packets counted after their window had closed.", |input| input.counts.late),
    ("bytes_read_total", "Length on the wire of frames read.", |input| input.counts.bytes_read),
    ("bytes_counted_total", "Length on the wire of packets counted.", |input| input.counts.bytes_counted),
    ("packets_repeated_total", "Packets that came again, and count once.", |input| input.repeated),
];

/// A number of a writer: its name, what it is, and where it is found; `None` where there is none yet.
type WriterNumber = (&'static str, &'static str, MetricType, fn(&WriterFigures) -> Option<f64>);

const WRITER_NUMBERS: [WriterNumber; 8] = [
    ("windows_written_total", "Windows written, revisions too.", MetricType::COUNTER, |writer| {
        Some(writer.windows as f64)
    }),
    ("rows_written_total", "Rows written.", MetricType::COUNTER, |writer| Some(writer.rows as f64)),
    ("retries_total", "Tries to write that failed.", MetricType::COUNTER, |writer| {
        Some(writer.retries as f64)
    }),
    ("windows_dropped_total", "Windows left out for the writer.", MetricType::COUNTER, |writer| {
        Some(writer.dropped as f64)
    }),
    ("queue_windows", "Windows that wait for the writer.", MetricType::GAUGE, |writer| {
        Some(writer.queue_windows as f64)
    }),
    ("queue_bytes", "Bytes that wait for the writer.", MetricType::GAUGE, |writer| {
        Some(writer.queue_bytes as f64)
    }),
    ("up", "Whether the last try to write succeeded.", MetricType::GAUGE, |writer| {
        Some(f64::from(writer.up))
    }),
    ("last_write_timestamp_seconds", "When it has last written.", MetricType::GAUGE, |writer| {
        writer.last_write.map(seconds)
    }),
];

/// A series of a family: its labels and its value.
type Series = (Vec<LabelPair>, f64);

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    /// Adds a family, unless it is empty.
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(format!("netspectra_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// Adds a family of counters or of gauges.
    fn numbers(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series>,
    ) {
        let metric = |(labels, value): Series| {
            let mut metric = Metric::from_label(labels);
            if kind == MetricType::COUNTER {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        };
        self.add(name, help, kind, series.into_iter().map(metric).collect());
    }

    fn counter(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = Series>) {
        self.numbers(MetricType::COUNTER, name, help, series);
    }

    fn gauge(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = Series>) {
        self.numbers(MetricType::GAUGE, name, help, series);
    }

    fn inputs(&mut self, all: &[(InputReport, Counts)]) {
        let inputs = inputs(all);
        for (name, help, number) in INPUT_NUMBERS {
            let series = |input: &Input| {
                (labels(&[("input", &*input.name), ("format", &*input.format)]), number(input) as f64)
            };
            self.counter(&format!("input_{name}"), help, inputs.iter().map(series));
        }
        let lost = inputs.iter().flat_map(|input| {
            let places = input.losses.map(|losses| {
                let Losses { interface, kernel, probe, bus } = losses;
                [("interface", interface), ("kernel", kernel), ("probe", probe), ("bus", bus)]
            });
            places.into_iter().flatten().map(move |(place, lost)| {
                let names = [("input", &*input.name), ("format", &*input.format), ("where", place)];
                (labels(&names), lost as f64)
            })
        });
        self.counter(
            "input_packets_lost_total",
            "Packets that never arrived, by where they were lost.",
            lost,
        );
    }

    fn writers(&mut self, writers: &[WriterFigures]) {
        for (name, help, kind, number) in WRITER_NUMBERS {
            let series = writers.iter().filter_map(|writer| {
                Some((labels(&[("writer", &*writer.name), ("type", writer.kind)]), number(writer)?))
            });
            self.numbers(kind, &format!("writer_{name}"), help, series);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(measured: &Measured) -> String {
        told(measured, (2, 4096), 12_500_000_000).expect("text")
    }

    fn input(name: &str, before: u64, read: u64) -> (InputReport, Counts) {
        let before = Counts { read: before, ..Counts::default() };
        let report =
            InputReport { name: name.into(), format: "pcap".into(), before, ..InputReport::default() };
        (report, Counts { read, ..Counts::default() })
    }

    #[test]
    fn every_number_has_its_line() {
        let mut first = input("a\"b", 2, 5);
        first.0.losses = Some(Losses { kernel: 7, ..Losses::default() });
        let writer =
            WriterFigures { name: "lake".into(), kind: "parquet", rows: 9, ..WriterFigures::default() };
        let measured = Measured {
            inputs: vec![first],
            watermark: Some(10_000_000_000),
            skews: vec![("p".into(), -1_500_000_000)],
            raised: 3,
            stalled: Duration::from_secs(90),
            writers: vec![writer],
            ..Measured::default()
        };
        let text = text(&measured);
        for line in [
            "# TYPE netspectra_input_packets_read_total counter",
            r#"netspectra_input_packets_read_total{input="a\"b",format="pcap"} 7"#,
            r#"netspectra_input_packets_lost_total{input="a\"b",format="pcap",where="kernel"} 7"#,
            r#"netspectra_alerts_events_total{event="raised"} 3"#,
            "netspectra_watermark_timestamp_seconds 10",
            "netspectra_watermark_lag_seconds 2.5",
            "netspectra_stalled_seconds 90",
            "netspectra_watermark_ahead_seconds 0",
            r#"netspectra_probe_clock_skew_seconds{probe="p"} -1.5"#,
            "netspectra_recent_windows 2",
            "netspectra_recent_bytes 4096",
            "# TYPE netspectra_writer_up gauge",
            r#"netspectra_writer_up{writer="lake",type="parquet"} 0"#,
            r#"netspectra_writer_rows_written_total{writer="lake",type="parquet"} 9"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        // What has no value yet has no line.
        assert!(!text.contains("last_write_timestamp") && !text.contains("last_commit_timestamp"));
    }

    #[test]
    fn a_watermark_that_is_ahead_has_no_lag() {
        let text = text(&Measured { watermark: Some(15_000_000_000), ..Measured::default() });
        for line in ["netspectra_watermark_lag_seconds 0", "netspectra_watermark_ahead_seconds 2.5"] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn many_inputs_are_summed() {
        let mut inputs: Vec<_> = (0..102).map(|number| input(&number.to_string(), 1, 1)).collect();
        inputs.push(input("0", 0, 5));
        let text = text(&Measured { inputs, ..Measured::default() });
        let read = "netspectra_input_packets_read_total{";
        assert_eq!(text.lines().filter(|line| line.starts_with(read)).count(), 101);
        assert!(text.contains(&format!("{read}input=\"0\",format=\"pcap\"}} 7\n")));
        assert!(text.contains(&format!("{read}input=\"other\",format=\"other\"}} 4\n")));
    }

    #[test]
    fn buckets_count_all_below_them() {
        let histogram = Histogram::default();
        [0.004, 0.005, 0.006, 61.0].into_iter().for_each(|seconds| histogram.observe(seconds));
        let text = text(&Measured { close: histogram.clone(), ..Measured::default() });
        histogram.observe(1.0);
        for line in [
            r#"netspectra_window_close_seconds_bucket{le="0.005"} 2"#,
            r#"netspectra_window_close_seconds_bucket{le="0.01"} 3"#,
            r#"netspectra_window_close_seconds_bucket{le="60"} 3"#,
            r#"netspectra_window_close_seconds_bucket{le="+Inf"} 4"#,
            "netspectra_window_close_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}

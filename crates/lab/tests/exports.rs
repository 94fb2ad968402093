//! Tests what other programs read from the service: metrics of the line, and tables as CSV and JSON lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Appliance, Device, Reflector, Running};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Starts the service on a free port of loopback, and returns its address.
fn serve(device: &Device, more: &[(&str, &str)]) -> (Running, String) {
    let mut command = device.command(&["serve"]);
    command.env("PACKETPARAMEDIC_LISTEN", "127.0.0.1:0").envs(more.iter().copied());
    let service = device.serve_with(command);
    let line = service.line(PATIENCE).unwrap_or_else(|error| panic!("{error:#}\n{}", device.log()));
    let address = line.strip_prefix("serving on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
    (service, address)
}

/// Sends an HTTP request, and returns the status, the head and the body of the answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, head.to_lowercase(), body.to_owned())
}

fn ask(address: &str, method: &str, headers: &[&str]) -> (u16, String, String) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
    exchange(stream, &format!("{method} /metrics HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"))
}

/// Reads the metrics through the service's unix socket.
fn scrape(device: &Device) -> String {
    let stream = UnixStream::connect(device.socket()).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (status, head, body) = exchange(stream, request);
    assert_eq!(status, 200, "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    body
}

/// Parses metrics text into samples, each with its value.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

/// Parses metrics text into metrics, each with its type and the keys of its labels. Leaves out `le`, the label of a
/// histogram's buckets.
fn described(text: &str) -> BTreeSet<(String, String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let keys = |name: &str, kind: &str| {
        let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let sample = text.lines().find_map(|line| line.strip_prefix(&sample)?.strip_prefix('{')?.split_once('}'));
        let pairs = sample.map_or("", |(pairs, _)| pairs).split(',').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split('=').next().unwrap()).collect::<Vec<_>>().join(", ")
    };
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned(), keys(name, kind))).collect()
}

/// Finds the names of metrics in any text.
fn mentioned(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_of_name(c)).filter(|word| word.starts_with("packetparamedic_"));
    words.map(str::to_owned).collect()
}

/// Starts a reflector, and the service of a device that has a value for every metric. Returns both with the running
/// service and its address.
fn measured() -> (Reflector, Device, Running, String) {
    let reflector = Reflector::serve(&[("NAME", "attic")]);
    let device = Device::new(Appliance::new().pair(&reflector, reflector.address()));
    let (service, address) = serve(&device, &[("PACKETPARAMEDIC_LOG", "info,paramedic_appliance=debug")]);
    device.must(&["plan", "set", "--download", "250M", "--upload", "40M", "--download-normal", "200M"]);
    device.must(&["monitor", "add", "reflector:attic"]);
    device.schedule("daily", &["-t", "0.5", "--idle", "0.3"]);
    device.must(&["schedule", "run", "daily"]);
    assert_eq!(device.await_run("daily")["outcome"], "done", "{}", device.log());
    let is_running = |list: &Value| list[0]["condition"]["activity"] == "running";
    device.await_json(&["monitor", "list"], is_running);
    (reflector, device, service, address)
}

#[test]
fn the_metrics_are_those_of_the_line_and_each_is_documented() {
    let (reflector, device, _service, _) = measured();
    let text = scrape(&device);
    let samples = samples(&text);
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name}:\n{text}"));
    let runs = device.json(&["history"]);
    let run = &runs[0];
    for (sample, field) in [
        ("bits_per_second{target=\"attic\",engine=\"tcp\",direction=\"download\"}", "download_bps"),
        ("bits_per_second{target=\"attic\",engine=\"tcp\",direction=\"upload\"}", "upload_bps"),
    ] {
        let sample = format!("packetparamedic_last_result_{sample}");
        assert_eq!(Some(value(&sample)), run[field].as_f64(), "{sample}\n{run:#}");
    }
    let loaded =
        value("packetparamedic_last_result_round_trip_seconds{target=\"attic\",engine=\"tcp\",load=\"download\"}");
    assert!((loaded * 1e6 - run["rtt_download_us"].as_f64().unwrap()).abs() < 1e-3, "{loaded}\n{run:#}");
    for (sample, expected) in [
        ("packetparamedic_state{state=\"running\"}", 1.0),
        ("packetparamedic_state{state=\"faulted\"}", 0.0),
        ("packetparamedic_plan_bits_per_second{direction=\"download\",kind=\"promised\"}", 250e6),
        ("packetparamedic_plan_bits_per_second{direction=\"download\",kind=\"normal\"}", 200e6),
        ("packetparamedic_monitor_state{monitor=\"attic\",state=\"running\"}", 1.0),
        ("packetparamedic_schedule_enabled{schedule=\"daily\"}", 1.0),
        ("packetparamedic_schedule_last_outcome{schedule=\"daily\",outcome=\"done\"}", 1.0),
        ("packetparamedic_outage_open", 0.0),
        ("packetparamedic_data_used_month_bytes", run["data_used_bytes"].as_f64().unwrap()),
    ] {
        assert_eq!(value(sample), expected, "{sample}\n{text}");
    }
    assert!(value("packetparamedic_monitor_probes_total{monitor=\"attic\"}") > 0.0, "{text}");
    for secret in [device.appliance.id(), reflector.id()] {
        assert!(!text.contains(&secret), "{secret} in\n{text}");
    }

    // The table of the documentation, in the same order of columns.
    let page = fs::read_to_string(root().join("docs/prometheus.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `packetparamedic_"));
    let rows =
        rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>());
    let documented = rows.map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect::<BTreeSet<_>>();
    assert_eq!(documented, described(&text), "the table of docs/prometheus.md and the output");

    // What the alert rules and the dashboard ask for is there.
    let known = mentioned(&text);
    for file in ["packaging/prometheus/packetparamedic.rules.yml", "packaging/grafana/packetparamedic.json"] {
        let asked = mentioned(&fs::read_to_string(root().join(file)).unwrap());
        assert!(asked.len() > 5, "{asked:?}");
        assert!(asked.is_subset(&known), "{file} asks for {:?}", asked.difference(&known).collect::<Vec<_>>());
    }
}

#[test]
fn the_metrics_are_read_by_the_rules_of_the_api() {
    let device = Device::new(Appliance::new());
    let (service, address) = serve(&device, &[]);
    let own = format!("Host: {address}");
    let (status, head, body) = ask(&address, "GET", &[&own]);
    assert_eq!(status, 200, "{head}");
    assert!(
        body.contains("\npacketparamedic_build_info{") && head.contains("cache-control: no-store"),
        "{head}\n{body}"
    );
    let open = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let (_, head, body) = ask(&address, "GET", &[&own, open]);
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (status, head, body) = ask(&address, "HEAD", &[&own]);
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
    for method in ["POST", "PUT", "DELETE"] {
        let (status, head, _) = ask(&address, method, &[&own]);
        assert_eq!(status, 403, "without a login nothing is changed: {head}");
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let (status, head, _) = exchange(UnixStream::connect(device.socket()).unwrap(), &request);
        assert_eq!(status, 405, "{head}");
    }
    assert_eq!(ask(&address, "GET", &["Host: evil.example"]).0, 421);
    assert_eq!(ask(&address, "GET", &[&own, "Authorization: Bearer nonsense"]).0, 401);
    drop(service);
    // Behind a proxy on this host, every client needs a token.
    let (_service, address) = serve(&device, &[("PACKETPARAMEDIC_TRUSTED_PROXIES", "127.0.0.1")]);
    let own = format!("Host: {address}");
    assert_eq!(ask(&address, "GET", &[&own]).0, 401);
    let token = device.must(&["token", "add", "--name", "prometheus", "--scope", "read"]);
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (status, _, body) = ask(&address, "GET", &[&own, &bearer]);
    assert_eq!(status, 200, "{body}");
    device.must(&["token", "remove", "prometheus"]);
    assert_eq!(ask(&address, "GET", &[&own, &bearer]).0, 401);
}

#[test]
fn tables_are_exported_by_the_service_and_without_it() {
    let (_reflector, device, mut service, _) = measured();
    let runs = |format: &str| device.must(&["schedule", "runs", "daily", "--format", format]);
    let (csv, lines) = (runs("csv"), runs("jsonl"));
    let listed = device.json(&["schedule", "runs", "daily"]);
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    assert_eq!(Some(&rows), listed.as_array(), "one run");
    let head = csv.lines().next().unwrap();
    assert!(head.starts_with("id,schedule_id,schedule,due_at,decided_at,"), "{csv}");
    assert_eq!(csv.lines().count(), 2, "{csv}");
    assert_eq!(device.must(&["schedule", "runs", "--format", "csv", "--until", "2020-01-01"]), format!("{head}\n"));
    assert_eq!(device.must(&["outages", "--format", "jsonl"]), "");
    assert!(device.must(&["outages", "--format", "csv"]).starts_with("id,began_at,ended_at,"));
    for wrong in [
        &["outages", "--since", "7d"][..],
        &["outages", "--format", "csv", "--json"],
        &["outages", "--format", "xml"],
        &["monitor", "export", "attic", "--resolution", "weeks"],
        &["schedule", "runs", "--format", "csv", "--since", "yesterday"],
    ] {
        assert_eq!(device.run(wrong).code, 2, "{wrong:?}");
    }
    for missing in [&["monitor", "export", "nobody"][..], &["schedule", "runs", "nobody", "--format", "csv"]] {
        assert_eq!(device.run(missing).code, 1, "{missing:?}: by the service");
    }
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).unwrap().code(), Some(0), "{}", device.log());
    assert_eq!((runs("csv"), runs("jsonl")), (csv, lines), "the same without the service");
    // The minute that ran is stored at the end.
    let minutes = device.must(&["monitor", "export", "attic", "--since", "1d"]);
    let minutes = minutes.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    assert!(minutes.iter().any(|minute| minute["count"].as_u64() > Some(0)), "{minutes:#?}");
    assert!(minutes.iter().all(|minute| minute["monitor"] == "attic" && minute["span_s"] == 60), "{minutes:#?}");
    let csv = device.must(&["monitor", "export", "attic", "--format", "csv"]);
    assert!(csv.starts_with("monitor,at,span_s,count,lost,under_load,min_us,p50_us,p95_us,max_us\nattic,20"), "{csv}");
    for missing in [&["monitor", "export", "nobody"][..], &["schedule", "runs", "nobody", "--format", "csv"]] {
        assert_eq!(device.run(missing).code, 1, "{missing:?}");
    }
}

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

fn load(waiting: Option<f64>, running: Option<f64>, kv_usage: Option<f64>) -> Load {
    let report = Report { waiting, running, kv_usage, utilization: None };
    Load { report, ..Load::default() }
}

fn utilization(utilization: f64) -> Load {
    Load {
        report: Report { utilization: Some(utilization), ..Report::default() },
        ..Load::default()
    }
}

fn of(header: &str, value: &str) -> Load {
    read(header, value.as_bytes()).unwrap_or_else(|error| panic!("{header}: {value}: {error}"))
}

fn refused(header: &str, value: &str) -> Malformed {
    read(header, value.as_bytes()).expect_err(value)
}

fn wrong(header: &str, value: &str, at: usize, what: &str) {
    assert_eq!(refused(header, value), Malformed { at, what: what.to_owned() }, "{value:?}");
}

#[test]
fn what_vllm_and_triton_write() {
    let vllm = load(Some(3.0), None, Some(0.4));
    let text = "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0";
    assert_eq!(of(TAGGED, text), vllm);
    let json =
        "JSON {\"named_metrics\": {\"kv_cache_usage_perc\": 0.4, \"num_requests_waiting\": 3.0}}";
    assert_eq!(of(TAGGED, json), vllm);
    let triton = load(None, None, Some(0.000_558));
    let text =
        "TEXT named_metrics.kv_cache_utilization=0.000558, named_metrics.max_token_capacity=228800";
    assert_eq!(of(TAGGED, text), triton);
    let json = "JSON {\"named_metrics\":{\"kv_cache_utilization\":0.000558,\
                \"max_token_capacity\":228800}}";
    assert_eq!(of(TAGGED, json), triton);
}

#[test]
fn what_others_write() {
    let wanted = Load { requests_per_second: Some(10.0), ..utilization(0.3) };
    let text =
        "cpu_utilization=0.3, mem_utilization=0.8, rps_fractional=10.0, eps=1, named_metrics.x=0.4";
    assert_eq!(of(TAGGED, &format!("TEXT {text}")), wanted);
    assert_eq!(of(TAGGED, &format!("TEXT {}", text.replace('=', ":"))), wanted);
    assert_eq!(of(TAGGED, &text.replace("=", " = ")), wanted);
    let json = "{\"cpu_utilization\":0.3,\"mem_utilization\":0.8,\"eps\":1,\"rps_fractional\":10}";
    for (header, value) in [
        (TAGGED, json.to_owned()),
        (BARE_JSON, json.to_owned()),
        (BARE_JSON, format!("JSON {json}")),
    ] {
        assert_eq!(of(header, &value), wanted, "{header}: {value}");
    }
    let camel = r#"{"applicationUtilization":"0.5","cpuUtilization":0.3,"rpsFractional":2,
        "namedMetrics":{"num_requests_running":"7"}}"#;
    let report = Report { running: Some(7.0), utilization: Some(0.5), ..Report::default() };
    let wanted = Load { report, first_byte_p95_ms: None, requests_per_second: Some(2.0) };
    assert_eq!(of(BARE_JSON, camel), wanted);
}

/// The message that the ORCA text has as an example: field 1 is 0.1, field 6 is 2.0, field 8 has
/// `foo` and `bar`.
#[test]
fn the_example_of_the_protocol_text() {
    let example = "CZqZmZmZmbk/MQAAAAAAAABAQg4KA2ZvbxGamZmZmZm5P0IOCgNiYXIRmpmZmZmZyT8=";
    let wanted = Load { requests_per_second: Some(2.0), ..utilization(0.1) };
    assert_eq!(of(BARE_BIN, example), wanted);
    assert_eq!(of(BARE_BIN, example.trim_end_matches('=')), wanted);
    assert_eq!(of(BARE_BIN, &format!(" {example} ")), wanted);
    assert_eq!(of(TAGGED, &format!("BIN {example}")), wanted);
    assert_eq!(of("Endpoint-Load-Metrics-Bin", example), wanted);
}

#[test]
fn formats_have_names_in_any_case() {
    for (name, format) in [("text", Format::Text), ("JSON", Format::Json), (" Bin ", Format::Bin)] {
        assert_eq!(Format::named(name), Some(format));
    }
    for name in ["", "texts", "protobuf", "text json"] {
        assert_eq!(Format::named(name), None);
    }
}

#[test]
fn application_utilization_is_preferred_and_zero_means_not_set() {
    let report = |text: &str| of(TAGGED, text).report.utilization;
    assert_eq!(report("TEXT cpu_utilization=0.9,application_utilization=0.2"), Some(0.2));
    assert_eq!(report("TEXT cpu_utilization=0.9,application_utilization=0"), Some(0.9));
    assert_eq!(report("TEXT cpu_utilization=0,application_utilization=0"), None);
    assert_eq!(report("TEXT application_utilization=1.7"), Some(1.7));
}

#[test]
fn of_several_names_of_the_cache_the_first_known_is_believed() {
    let kv = |text: &str| of(TAGGED, text).report.kv_usage;
    let all = "TEXT named_metrics.kv_cache_usage=0.3,named_metrics.kv_cache_utilization=0.2,\
               named_metrics.kv_cache_usage_perc=0.1";
    assert_eq!(kv(all), Some(0.1));
    assert_eq!(
        kv("TEXT utilization.kv_cache_usage=0.3,named_metrics.kv_cache_utilization=0.2"),
        Some(0.2)
    );
    assert_eq!(kv("TEXT utilization.kv_cache_usage=0.3"), Some(0.3));
    assert_eq!(kv("TEXT named_metrics.kv_cache_usage=40"), Some(1.0));
}

#[test]
fn what_does_not_matter_is_not_judged() {
    let text = "TEXT mem_utilization=lots,, named_metrics.note=\"a b\",request_cost.x=-1 , \
                num_requests_waiting=9,";
    assert_eq!(of(TAGGED, text), Load::default());
    let json = "{\"mem_utilization\":\"lots\",\"request_cost\":[1,{}],\
                \"named_metrics\":{\"x\":null},\"utilization\":null}";
    assert_eq!(of(BARE_JSON, json), Load::default());
    for empty in ["", "TEXT", "TEXT ", "JSON {}", "{}", "BIN", "BIN "] {
        assert_eq!(of(TAGGED, empty), Load::default(), "{empty:?}");
    }
    // Fields of every type, of a group's neighbours and of the wrong type for their number, and a
    // map's entry without a key.
    let message = [
        &[0x18, 0xff, 0xff, 0x03][..],
        &[0x0d, 1, 2, 3, 4],
        &[0xfa, 0x01, 3, 7, 7, 7],
        &[0x42, 0],
        &[0x40, 9],
        &[0x22, 2, 0xff, 0xff],
    ];
    assert_eq!(of(BARE_BIN, &BASE64.encode(message.concat())), Load::default());
}

#[test]
fn malformed_text_is_refused() {
    wrong(TAGGED, "TEXT cpu_utilization", 5, "neither = nor : after a key");
    wrong(TAGGED, "TEXT eps=1,  broken ,x=2", 13, "neither = nor : after a key");
    let what = "num_requests_waiting is not a number from 0 on";
    for value in ["", "x", "-1", "NaN", "inf", "1e999", "3 4", "0x3"] {
        let text = format!("TEXT eps=1, named_metrics.num_requests_waiting={value}, x=1");
        wrong(TAGGED, &text, 12, what);
    }
    let twice = "TEXT cpu_utilization=0.1,cpu_utilization=0.2";
    wrong(TAGGED, twice, 25, "cpu_utilization is there twice");
    wrong(TAGGED, "<html>", 0, "neither = nor : after a key");
    let error = refused(TAGGED, "TEXT broken").to_string();
    assert_eq!(error, "load report: neither = nor : after a key at byte 5");
}

#[test]
fn malformed_json_is_refused() {
    let inside = "JSON {\"named_metrics\":{\"num_requests_waiting\":-3}}";
    let error = refused(TAGGED, inside);
    assert_eq!(error.what, "not a number from 0 on");
    assert!(inside[..=error.at].ends_with("-3") || inside[..error.at].ends_with("-3"), "{error}");
    let twice = "{\"cpu_utilization\":1,\"cpuUtilization\":1}";
    assert_eq!(refused(BARE_JSON, twice).what, "duplicate field `cpu_utilization`");
    let twice = "{\"named_metrics\":{\"kv_cache_usage\":1,\"kv_cache_usage\":1}}";
    assert_eq!(refused(BARE_JSON, twice).what, "kv_cache_usage is there twice");
    for value in [
        "{",
        "[]",
        "{}x",
        "nonsense",
        "{\"cpu_utilization\":true}",
        "{\"named_metrics\":3}",
        "{\"utilization\":[]}",
    ] {
        let error = refused(BARE_JSON, value);
        assert!(error.at <= value.len() && !error.what.is_empty(), "{value}: {error}");
    }
    assert_eq!(refused(BARE_JSON, "x=1").what, "not an object");
    let deep = format!("{{\"x\":{}", "[".repeat(10_000));
    assert!(read(BARE_JSON, deep.as_bytes()).is_err());
}

#[test]
fn malformed_base64_is_refused() {
    wrong(BARE_BIN, "CZqZ*Zma", 4, "not base64");
    wrong(TAGGED, "BIN  CZqZ*Zma", 9, "not base64");
    wrong(BARE_BIN, "CZqZmZmZmbk/M", 13, "base64 of no such length");
    wrong(BARE_BIN, "CZqZmZmZmbk/MQ=====", 14, "not base64");
    wrong(BARE_BIN, "CZqZ_-ma", 4, "not base64");
}

#[test]
fn malformed_messages_are_refused() {
    let cut_off = "a field that is cut off";
    let messages: [(&[u8], usize, &str); 11] = [
        (&[0x09, 1, 2, 3], 0, cut_off),
        (&[0x18, 1, 0x0d, 1, 2], 2, cut_off),
        (&[0x42, 5, 0x0a], 0, cut_off),
        (&[0x42, 3, 0x0a, 9, b'x'], 2, cut_off),
        (&[0x42, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], 0, cut_off),
        (&[0x18, 1, 0x80], 2, "a number that is cut off"),
        (&[0x18], 0, "a number that is cut off"),
        (&[0xff; 11], 0, "a number of more than ten bytes"),
        (&[0x18, 1, 0x0b], 2, "a field of the unknown type 3"),
        (&[0x0f], 0, "a field of the unknown type 7"),
        (&[0x00, 0x01], 0, "a field with the number 0"),
    ];
    for (message, at, what) in messages {
        wrong(BARE_BIN, &BASE64.encode(message), at, what);
    }
    let negative = [&[0x18, 1, 0x09][..], &(-1.0_f64).to_le_bytes()].concat();
    wrong(BARE_BIN, &BASE64.encode(negative), 2, "cpu_utilization is not a number from 0 on");
}

#[test]
fn of_a_repeated_field_of_a_message_the_last_counts() {
    let cpu = |value: f64| [&[0x09][..], &value.to_le_bytes()].concat();
    assert_eq!(of(BARE_BIN, &BASE64.encode([cpu(0.1), cpu(0.2)].concat())), utilization(0.2));
    // An entry of the map without a value has the value 0.
    let entry = [&[0x42, 22, 0x0a, 20][..], b"num_requests_waiting"].concat();
    let wanted = load(Some(0.0), None, None);
    assert_eq!(of(BARE_BIN, &BASE64.encode(&entry)), wanted);
    // Field 5 is a map as well.
    let utilization = [&[0x2a][..], &entry[1..]].concat();
    assert_eq!(of(BARE_BIN, &BASE64.encode(utilization)), wanted);
}

#[test]
fn a_value_that_is_too_long_is_refused() {
    let value = format!("TEXT {}", ",".repeat(MAX_VALUE - 5));
    assert_eq!(of(TAGGED, &value), Load::default());
    wrong(TAGGED, &format!("{value},"), MAX_VALUE, "too long");
}

#[test]
fn what_is_written() {
    let report = Report {
        waiting: Some(3.0),
        running: Some(12.0),
        kv_usage: Some(0.25),
        utilization: Some(0.5),
    };
    let load = Load { report, first_byte_p95_ms: Some(410.5), requests_per_second: Some(7.25) };
    let text = "TEXT application_utilization=0.5, rps_fractional=7.25, \
                named_metrics.num_requests_waiting=3, named_metrics.num_requests_running=12, \
                named_metrics.kv_cache_usage_perc=0.25, named_metrics.first_byte_p95_ms=410.5";
    assert_eq!(write(Format::Text, &load), Some((TAGGED, text.to_owned())));
    let json = "JSON {\"application_utilization\":0.5,\"rps_fractional\":7.25,\"named_metrics\":\
                {\"num_requests_waiting\":3,\"num_requests_running\":12,\
                \"kv_cache_usage_perc\":0.25,\"first_byte_p95_ms\":410.5}}";
    assert_eq!(write(Format::Json, &load), Some((TAGGED, json.to_owned())));
    let waiting = self::load(Some(1.0), None, None);
    let message =
        [&[0x42, 31, 0x0a, 20][..], b"num_requests_waiting", &[0x11], &1.0_f64.to_le_bytes()];
    let bin = (BARE_BIN, BASE64.encode(message.concat()));
    assert_eq!(write(Format::Bin, &waiting), Some(bin));
    let field = (TAGGED, "JSON {\"application_utilization\":0.5}".to_owned());
    assert_eq!(write(Format::Json, &utilization(0.5)), Some(field));
}

#[test]
fn what_is_unknown_is_not_written() {
    let nothing = [
        Load::default(),
        utilization(0.0),
        utilization(f64::NAN),
        load(Some(f64::INFINITY), Some(-1.0), Some(f64::NAN)),
    ];
    for load in &nothing {
        for format in FORMATS {
            assert_eq!(write(format, load), None, "{load:?}");
        }
    }
    let full = (TAGGED, "TEXT named_metrics.kv_cache_usage_perc=1".to_owned());
    assert_eq!(write(Format::Text, &load(None, None, Some(1.5))), Some(full));
}

const FORMATS: [Format; 3] = [Format::Text, Format::Json, Format::Bin];

/// Any load, of numbers great and small.
fn any(rng: &mut impl Rng) -> Load {
    let mut number = |highest: f64| {
        let exponent = rng.random_range(-12..3);
        let number = rng.random_range(0.0..1.0_f64) * 10.0_f64.powi(exponent);
        let whole = rng.random_bool(0.5);
        let number = if whole { (number * 1000.0).round() } else { number };
        rng.random_bool(0.7).then_some(number.min(highest))
    };
    let report = Report {
        waiting: number(f64::MAX),
        running: number(f64::MAX),
        kv_usage: number(1.0),
        utilization: number(f64::MAX).filter(|value| *value > 0.0),
    };
    let requests_per_second = number(f64::MAX).filter(|value| *value > 0.0);
    Load { report, first_byte_p95_ms: number(f64::MAX), requests_per_second }
}

fn values(load: &Load) -> [Option<f64>; 6] {
    let Load { report, first_byte_p95_ms, requests_per_second } = load;
    let Report { waiting, running, kv_usage, utilization } = *report;
    [waiting, running, kv_usage, utilization, *first_byte_p95_ms, *requests_per_second]
}

/// JSON is read to within the last bit of a number.
fn is_close(one: &Load, other: &Load) -> bool {
    values(one).iter().zip(values(other)).all(|pair| match pair {
        (Some(one), Some(other)) => (one - other).abs() <= one * 1e-15,
        (one, other) => *one == other,
    })
}

#[test]
fn what_is_written_is_read_again() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut written = 0;
    for _ in 0..5000 {
        let load = any(&mut rng);
        for format in FORMATS {
            let Some((header, value)) = write(format, &load) else {
                assert_eq!(load, Load::default());
                continue;
            };
            assert!(value.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{value:?}");
            assert!(value.len() < 512, "{value}");
            let again = of(header, &value);
            match format {
                Format::Json => assert!(is_close(&again, &load), "{value}: {again:?}"),
                Format::Text | Format::Bin => assert_eq!(again, load, "{header}: {value}"),
            }
            written += 1;
        }
    }
    assert!(written > 14_000, "{written}");
}

#[test]
fn damaged_reports_are_errors_and_never_panics() {
    let mut rng = StdRng::seed_from_u64(29);
    let noise = b" ,=:{}[]\"\\-+.eE09NnTtBbZz\x00\x80\xff";
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let format = FORMATS[rng.random_range(0..FORMATS.len())];
        let Some((header, value)) = write(format, &any(&mut rng)) else { continue };
        // The message itself is damaged as well, not only its base64.
        let mut bytes = value.into_bytes();
        let inside = format == Format::Bin && rng.random_bool(0.7);
        if inside {
            bytes = BASE64.decode(bytes).expect("written above");
        }
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..=bytes.len());
            match rng.random_range(0..3) {
                0 => bytes.insert(at, noise[rng.random_range(0..noise.len())]),
                1 => bytes.truncate(at),
                _ => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
            }
        }
        let bytes = if inside { BASE64.encode(bytes).into_bytes() } else { bytes };
        match read(header, &bytes) {
            Ok(load) => {
                assert!(values(&load).into_iter().flatten().all(is_load), "{load:?}");
                good += 1;
            }
            Err(error) => {
                assert!(error.at <= bytes.len() && !error.what.is_empty(), "{error}: {bytes:?}");
                bad += 1;
            }
        }
    }
    assert!(good > 1000 && bad > 1000, "{good} read, {bad} refused");
}

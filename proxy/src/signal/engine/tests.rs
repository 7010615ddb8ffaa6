use allocation_counter::measure;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const VLLM: &str = include_str!("pages/vllm.txt");
const SGLANG: &str = include_str!("pages/sglang.txt");
const TGI: &str = include_str!("pages/tgi.txt");
const LLAMA_CPP: &str = include_str!("pages/llama_cpp.txt");
const TENSORRT_LLM: &str = include_str!("pages/tensorrt_llm.txt");
const TRITON: &str = include_str!("pages/triton.txt");
const TRITON_TENSORRT_LLM: &str = include_str!("pages/triton_tensorrt_llm.txt");

const PAGES: [&str; 7] = [VLLM, SGLANG, TGI, LLAMA_CPP, TENSORRT_LLM, TRITON, TRITON_TENSORRT_LLM];

fn finished(page: &[u8]) -> Result<Reading, Unrecognised> {
    let mut reader = Reader::new(None);
    reader.feed(page);
    reader.finish()
}

fn reading(page: &str) -> Reading {
    finished(page.as_bytes()).unwrap_or_else(|error| panic!("{error}: {page}"))
}

fn expecting(engine: Engine, page: &str) -> Result<Reading, Unrecognised> {
    let mut reader = Reader::new(Some(engine));
    reader.feed(page.as_bytes());
    reader.finish()
}

/// `[waiting, running, kv_usage]`
fn loads(page: &str) -> [Option<f64>; 3] {
    let report = reading(page).report;
    [report.waiting, report.running, report.kv_usage]
}

fn check(page: &str, engine: Engine, expected: [Option<f64>; 3], progress: Option<f64>) {
    let reading = reading(page);
    assert_eq!((reading.engine, loads(page)), (engine, expected));
    assert_eq!(reading.progress, progress, "{engine:?}");
    assert_eq!(reading.report.utilization, None);
    assert_eq!(expecting(engine, page), Ok(reading), "when {engine:?} is expected");
}

#[test]
fn every_engine_is_recognised_and_read() {
    let (sglang, tgi) = (971_400.0 + 3_829_888.0 + 156_755.0, 8_811.0 + 412_087.0);
    let vllm = 177_398.0 + 3_702_641.0;
    check(VLLM, Engine::Vllm, [Some(4.0), Some(23.0), Some(0.618_164_062_5)], Some(vllm));
    let sglang = Some(sglang + 155_302.0);
    check(SGLANG, Engine::Sglang, [Some(6.0), Some(31.0), Some(0.41)], sglang);
    check(TGI, Engine::Tgi, [Some(5.0), Some(19.0), None], Some(tgi));
    check(LLAMA_CPP, Engine::LlamaCpp, [Some(2.0), Some(4.0), None], Some(39_303.0));
    check(TENSORRT_LLM, Engine::TensorrtLlm, [Some(1.0), Some(12.0), Some(0.27)], None);
    check(TRITON, Engine::Triton, [Some(9.0), None, None], Some(5_359.0));
    let waiting = Some(3.0 + 2.0);
    let triton = [waiting, Some(9.0), Some(0.375)];
    check(TRITON_TENSORRT_LLM, Engine::TritonTensorrtLlm, triton, Some(90_211.0));
}

#[test]
fn a_triton_may_have_any_backend() {
    let reading = expecting(Engine::Triton, TRITON_TENSORRT_LLM).expect("a Triton is expected");
    assert_eq!(reading, self::reading(TRITON_TENSORRT_LLM));
    let vllm = "vllm:generation_tokens_total{model=\"m\",version=\"1\"} 16\n";
    for page in [format!("{TRITON}{vllm}"), format!("{vllm}{TRITON}")] {
        let both = self::reading(&page);
        assert_eq!((both.engine, both.progress), (Engine::Triton, Some(16.0)));
        assert_eq!(both.report.waiting, Some(9.0));
        assert_eq!(expecting(Engine::Triton, &page), Ok(both));
    }
}

#[test]
fn another_engine_than_expected_is_not_read() {
    let error = expecting(Engine::Sglang, VLLM).expect_err("a page of vLLM");
    assert_eq!(error.expected, Some(Engine::Sglang));
    assert_eq!(error.lines, VLLM.lines().count() as u64);
    assert_eq!(error.to_string(), "no load of sglang among 218 lines");
    assert!(expecting(Engine::Vllm, TRITON).is_err());
    assert!(expecting(Engine::TritonTensorrtLlm, TRITON).is_err());
}

#[test]
fn pages_without_a_known_name_are_unrecognised() {
    let pages = [
        "",
        "\n\n",
        "404 page not found\n",
        "[{\"numActiveRequests\": 3, \"numQueuedRequests\": 1}]",
        "# HELP up compare vllm:num_requests_waiting\nup 1\n",
        "node_load1 0.5\nvllm:num_requests_waiting_by_reason{reason=\"capacity\"} 3\n",
        "my_vllm:num_requests_waiting 3\nxsglang:num_queue_reqs 3\n",
        "vllm:num_requests_waiting\n",
        "nv_gpu_utilization 0.5\ntgi_request_count 3\n",
    ];
    for page in pages {
        let error = finished(page.as_bytes()).expect_err(page);
        assert_eq!(error, Unrecognised { expected: None, lines: page.lines().count() as u64 });
    }
    let error = finished(b"one\ntwo").expect_err("no names");
    assert_eq!(error.to_string(), "no load of a known engine among 2 lines");
}

#[test]
fn a_name_that_is_only_declared_is_recognised_and_unknown() {
    let page = "# TYPE sglang:num_queue_reqs gauge\n# TYPE sglang:token_usage gauge\n";
    check(page, Engine::Sglang, [None; 3], None);
}

#[test]
fn where_a_page_is_cut_makes_no_difference() {
    for page in PAGES {
        let (page, whole) = (page.as_bytes(), reading(page));
        for size in [1, 2, 3, 7, 64, 1000] {
            let mut reader = Reader::new(None);
            page.chunks(size).for_each(|piece| reader.feed(piece));
            assert_eq!(reader.finish().as_ref(), Ok(&whole), "pieces of {size}");
        }
    }
    for cut in 0..=LLAMA_CPP.len() {
        let (head, tail) = LLAMA_CPP.as_bytes().split_at(cut);
        let mut reader = Reader::new(None);
        [head, b"", tail].iter().for_each(|piece| reader.feed(piece));
        assert_eq!(reader.finish(), Ok(reading(LLAMA_CPP)), "cut at {cut}");
    }
}

#[test]
fn counts_of_ranks_are_added_and_shares_averaged() {
    let rank = |rank: u32, waiting: f64, running: f64, kv: f64| {
        let labels = format!("{{engine=\"{rank}\",model_name=\"m\"}}");
        format!(
            "vllm:num_requests_waiting{labels} {waiting}\n\
             vllm:num_requests_running{labels} {running}\n\
             vllm:kv_cache_usage_perc{labels} {kv}\nvllm:iteration_tokens_total_count{labels} 10\n"
        )
    };
    let page = rank(0, 3.0, 8.0, 0.5) + &rank(1, 0.0, 7.0, 0.75);
    check(&page, Engine::Vllm, [Some(3.0), Some(15.0), Some(0.625)], Some(20.0));
}

#[test]
fn a_value_under_an_old_and_a_new_name_counts_once() {
    let page = "vllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.5\n";
    assert_eq!(loads(page), [None, None, Some(0.5)]);
    assert_eq!(loads("vllm:gpu_cache_usage_perc 0.5\n"), [None, None, Some(0.5)]);
}

#[test]
fn some_engines_have_two_prefixes() {
    assert_eq!(reading(&SGLANG.replace("sglang:", "sglang_")), reading(SGLANG));
    assert_eq!(reading(&TENSORRT_LLM.replace("trtllm_", "trtllm:")), reading(TENSORRT_LLM));
}

#[test]
fn older_builds_of_llama_cpp_tell_the_use_of_the_cache() {
    let page = format!("{LLAMA_CPP}llamacpp:kv_cache_usage_ratio 0.125\n");
    assert_eq!(loads(&page), [Some(2.0), Some(4.0), Some(0.125)]);
}

#[test]
fn sglang_ranks_count_once_each() {
    // Two data-parallel ranks of two tensor ranks, all of which are told to write.
    let mut page = String::new();
    for (dp, tp, queue) in [(0, 0, 4), (0, 1, 4), (1, 2, 1), (1, 3, 1)] {
        let labels = format!("{{dp_rank=\"{dp}\",model_name=\"m\",tp_rank=\"{tp}\"}}");
        page += &format!("sglang:num_queue_reqs{labels} {queue}.0\n");
        page += &format!("sglang:token_usage{labels} 0.{queue}\n");
    }
    assert_eq!(loads(&page), [Some(5.0), None, Some(0.25)]);
    let two = |rank: &str| format!("sglang:num_queue_reqs{{pp_rank=\"{rank}\"}} 1\n");
    assert_eq!(loads(&(two("0") + &two("1"))), [Some(1.0), None, None]);
    for rank in ["x", "-1", "", "128", "99999999999"] {
        let page = format!("{}sglang:num_queue_reqs{{dp_rank=\"{rank}\"}} 1\n", two("0"));
        assert_eq!(loads(&page), [None; 3], "{rank}");
    }
    let highest = two("0") + "sglang:num_queue_reqs{dp_rank=\"127\"} 1\n";
    assert_eq!(loads(&highest), [Some(2.0), None, None]);
}

#[test]
fn sglang_priorities_are_parts_of_the_total() {
    let page = "sglang:num_queue_reqs{model_name=\"m\",priority=\"\"} 5\n\
                sglang:num_queue_reqs{model_name=\"m\",priority=\"0\"} 3\n\
                sglang:num_queue_reqs{model_name=\"m\",priority=\"10\"} 2\n";
    assert_eq!(loads(page), [Some(5.0), None, None]);
    let lines: Vec<&str> = page.lines().rev().collect();
    assert_eq!(loads(&lines.join("\n")), [Some(5.0), None, None]);
}

#[test]
fn only_the_series_with_the_label_count() {
    let name = "nv_trt_llm_request_metrics";
    let page = format!(
        "{name}{{request_type=\"max\",note=\"request_type=\\\"waiting\\\"\"}} 512\n\
         {name}{{request_type=\"waiting\"}} 1\n\
         {name}{{model=\"}} waiting\", request_type = \"waiting\" ,}}  2\n\
         {name}{{xrequest_type=\"waiting\"}} 64\n{name} 128\n"
    );
    assert_eq!(loads(&page), [Some(3.0), None, None]);
}

#[test]
fn values_have_many_forms() {
    let forms = [
        ("3", 3.0),
        ("3.0", 3.0),
        ("+3", 3.0),
        ("0.3e+01", 3.0),
        ("3 1756000012345", 3.0),
        ("3 # {trace_id=\"f00\"} 0.67 1756000012.3", 3.0),
        ("\t3\r", 3.0),
        ("  3  ", 3.0),
        ("-0.0", 0.0),
    ];
    for (text, value) in forms {
        for labels in ["", "{}", "{a=\"b\"}", "{ a=\"b\", }", " {a=\"\\\\\",b=\"\\\"} 9\"}"] {
            let page = format!(" vllm:num_requests_waiting{labels} {text}\n");
            assert_eq!(loads(&page), [Some(value), None, None], "{page:?}");
        }
    }
}

#[test]
fn what_is_not_a_load_is_unknown() {
    let values =
        ["NaN", "nan", "+Inf", "-Inf", "inf", "-1", "1e999", "x", "", "0x10", "1_0", "1,5"];
    let labels = ["{a=\"b} 3", "{a=b} 3", "{a} 3", "{a=\"b\"", "{a=\"b\\\"} 3", "{=\"b\"\"} 3"];
    let lines = values.iter().map(|value| format!("vllm:num_requests_waiting {value}"));
    let labels = labels.iter().map(|labels| format!("vllm:num_requests_waiting{labels}"));
    for line in lines.chain(labels) {
        let good = "vllm:num_requests_waiting{engine=\"1\"} 3\nvllm:num_requests_running 2\n";
        for page in [format!("{line}\n{good}"), format!("{good}{line}\n"), format!("{good}{line}")]
        {
            assert_eq!(loads(&page), [None, Some(2.0), None], "{line:?}");
        }
    }
    let huge =
        "vllm:num_requests_waiting{e=\"0\"} 1e308\nvllm:num_requests_waiting{e=\"1\"} 1e308\n";
    assert_eq!(loads(huge), [None; 3]);
}

#[test]
fn a_share_is_at_most_one() {
    assert_eq!(loads("vllm:kv_cache_usage_perc 87\n"), [None, None, Some(1.0)]);
}

#[test]
fn a_line_that_is_too_long_is_skipped_and_its_value_unknown() {
    let label = |len: usize| format!("{{a=\"{}\"}}", "x".repeat(len));
    let line = |name: &str, len: usize| {
        let rest = format!("{name}{} 3", label(0)).len();
        format!("{name}{} 3\n", label(len - rest))
    };
    let running = "vllm:num_requests_running 2\n";
    for (len, waiting) in [(MAX_LINE, Some(3.0)), (MAX_LINE + 1, None), (3 * MAX_LINE, None)] {
        let page = line("vllm:num_requests_waiting", len) + running;
        assert_eq!(page.lines().next().map(str::len), Some(len));
        for size in [1, 100, MAX_LINE, page.len()] {
            let mut reader = Reader::new(None);
            page.as_bytes().chunks(size).for_each(|piece| reader.feed(piece));
            let report = reader.finish().expect("a page of vLLM").report;
            assert_eq!((report.waiting, report.running), (waiting, Some(2.0)), "{len} by {size}");
        }
    }
    let name = "vllm:num_requests_waiting";
    let blanks = " ".repeat(MAX_LINE - name.len() - 2);
    let page = format!("{name}{blanks}1234\n{running}");
    assert_eq!(loads(&page), [None, Some(2.0), None], "not 12");
    let pieces = page.as_bytes().split_at(MAX_LINE);
    let mut reader = Reader::new(None);
    [pieces.0, pieces.1].iter().for_each(|piece| reader.feed(piece));
    assert_eq!(reader.finish(), Ok(reading(&page)));
    let page = line("vllm:num_requests_waiting", 2 * MAX_LINE) + "vllm:num_requests_waiting 3\n";
    assert_eq!(loads(&page), [None; 3], "not only those of the other rank");
    let page = line("vllm:lora_requests_info", 5 * MAX_LINE) + running;
    assert_eq!(loads(&page), [None, Some(2.0), None]);
    let page = line("nv_trt_llm_request_metrics", 2 * MAX_LINE);
    assert_eq!(loads(&page), [None; 3], "it could have been the waiting ones");
}

#[test]
fn the_engine_that_the_page_says_most_of_wrote_it() {
    let page = "vllm:num_requests_waiting 1\nsglang:num_queue_reqs 2\nsglang:num_running_reqs 3\n";
    assert_eq!(reading(page).engine, Engine::Sglang);
    let page = "sglang:num_queue_reqs 2\nvllm:num_requests_waiting 1\n";
    assert_eq!(reading(page).engine, Engine::Vllm);
}

#[test]
fn reading_a_page_allocates_nothing() {
    for page in PAGES {
        let info = measure(|| {
            let mut reader = Reader::new(None);
            page.as_bytes().chunks(700).for_each(|piece| reader.feed(piece));
            assert!(reader.finish().is_ok());
        });
        assert_eq!(info.count_total, 0);
    }
}

#[test]
fn a_reader_is_small() {
    assert!(size_of::<Reader>() < 4096, "{}", size_of::<Reader>());
}

#[test]
fn damaged_pages_are_never_a_panic_and_never_a_negative_load() {
    let mut rng = StdRng::seed_from_u64(23);
    let noise = b"\n\r\t {}\",=\\#0123456789.eE+-NaInf_:\x00\xff";
    let mut unknown = 0;
    for _ in 0..4000 {
        let mut page = PAGES[rng.random_range(0..PAGES.len())].as_bytes().to_vec();
        for _ in 0..rng.random_range(1..40) {
            let at = rng.random_range(0..page.len());
            let byte = noise[rng.random_range(0..noise.len())];
            match rng.random_range(0..4) {
                0 => page[at] = byte,
                1 => page.insert(at, byte),
                2 => drop(page.remove(at)),
                _ => drop(page.drain(at..(at + rng.random_range(0..60)).min(page.len()))),
            }
        }
        let mut reader = Reader::new(None);
        let size = rng.random_range(1..5000);
        page.chunks(size).for_each(|piece| reader.feed(piece));
        let result = reader.finish();
        assert_eq!(result, finished(&page), "pieces of {size}");
        let Ok(Reading { report, progress, .. }) = result else { continue };
        for value in [report.waiting, report.running, report.kv_usage, progress] {
            assert!(value.is_none_or(is_load), "{value:?}");
            unknown += u32::from(value.is_none());
        }
        assert!(report.kv_usage.is_none_or(|share| share <= 1.0));
    }
    assert!(unknown > 100, "the damage does reach what is read: {unknown}");
}

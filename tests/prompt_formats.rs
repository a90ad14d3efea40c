//! Prompts of other programs: what PyTorch, NumPy and PEFT wrote is read, PEFT's logits are ours, what does not fit says why.

use std::path::{Path, PathBuf};

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Batch, Device, Example, Mixing, OptimizerOps, StateLayout};
use promptmix::model::{Mixture, Pass, T5};
use promptmix::pretrained::{Checkpoint, TensorFile};
use promptmix::prompts::{
    self, ImportSettings, Prompt, PromptMetadata, SavedScorer, import, import_with, merge,
    weights_by_similarity,
};
use random::Random;
use tempfile::tempdir;

#[path = "common/random.rs"]
#[allow(dead_code)] // whole numbers are enough here
mod random;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// As numpy.save writes an array.
fn npy(element: &str, columns_first: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if columns_first { "True" } else { "False" };
    let mut header = format!("{{'descr': '{element}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(data);
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Imports `bytes` as a file of this name.
fn import_bytes(name: &str, bytes: &[u8]) -> promptmix::Result<Prompt> {
    let folder = tempdir().expect("folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    import(&path).map(|imported| imported.prompt)
}

fn prompt(name: &str, values: &[f32], length: usize) -> Prompt {
    let width = values.len() / length;
    Prompt::new(name, values.to_vec(), length, width, PromptMetadata::default()).expect("a prompt")
}

/// Logits of the tiny T5 with `prompt` before its input, \[B, t, V\].
fn logits(prompt: &Prompt, ids: &[Vec<u32>], labels: &[Vec<u32>]) -> Vec<f64> {
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let model = T5::load(&cpu, &Checkpoint::open(&fixture("tiny")).expect("a model")).expect("loaded");
    let config = model.config();
    let mixing = Mixing::plain();
    let layout = StateLayout::new(&mixing, 1, prompt.length(), prompt.width(), 1, false);
    let values: Vec<f64> = prompt.values().iter().map(|&value| f64::from(value)).collect();
    let state = cpu.state(&layout, &values, 1).expect("a state");
    let mixture = Mixture { mixing, sources: None, source_count: 0, layout };
    let examples: Vec<Example> = ids
        .iter()
        .zip(labels)
        .map(|(source, target)| Example {
            source: source.clone(),
            target: target.clone(),
            ..Example::default()
        })
        .collect();
    let batch = Batch::pack(&examples, prompt.length(), config.decoder_start_token_id, config.vocab_size)
        .expect("a batch");
    let encoding = model.encode(&cpu, &mixture, &state, &batch, &mut Pass::evaluation()).expect("encoded");
    let decoding = model.decode(&cpu, &batch, &encoding, &mut Pass::evaluation()).expect("decoded");
    cpu.read(&model.logits(&cpu, &batch, &decoding).expect("logits")).expect("numbers")
}

#[test]
fn pefts_own_adapters_give_pefts_logits() {
    let golden = TensorFile::open_safetensors(&fixture("peft/golden.safetensors")).expect("the golden file");
    let read = |name: &str| {
        let shape = golden.shape(name).expect("there").to_vec();
        (golden.tensor(name, &shape).expect("read"), shape)
    };
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let (values, shape) = read(name);
        values.chunks(shape[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    };
    let (expected, _) = read("logits");
    let mut imported = Vec::new();
    for folder in ["peft/saved", "peft/saved_bin"] {
        let adapter = import(&fixture(folder)).expect(folder);
        assert_eq!((adapter.prompt.length(), adapter.prompt.width()), (6, 64), "{folder}");
        assert!(adapter.note.expect("half of it is left out").contains("never uses"), "{folder}");
        let actual = logits(&adapter.prompt, &rows("ids"), &rows("labels"));
        assert_eq!(actual.len(), expected.len());
        let largest =
            actual.iter().zip(&expected).map(|(a, &b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
        assert!(largest <= 1e-4, "{folder}: logits differ by {largest}");
        imported.push(adapter.prompt.into_values());
    }
    assert_eq!(imported[0], imported[1], "the same prompt in both formats");
    let file = import(&fixture("peft/saved/adapter_model.safetensors")).expect("by its weights");
    assert_eq!(file.prompt.values(), imported[0]);
    // The check can fail: another prompt gives other logits.
    let other: Vec<f32> = imported[0].iter().map(|value| value * 1.01).collect();
    let actual = logits(&prompt("other", &other, 6), &rows("ids"), &rows("labels"));
    assert!(actual.iter().zip(&expected).any(|(a, &b)| (a - f64::from(b)).abs() > 1e-3));
}

/// Settings of an import that takes one of an adapter's tasks, or so many rows.
fn choosing(adapter_task: Option<usize>, length: Option<usize>) -> ImportSettings {
    let mut settings = ImportSettings::default();
    (settings.adapter_task, settings.length) = (adapter_task, length);
    settings
}

/// `scripts/peers/peft_adapters.py kinds` left what PEFT itself computes with each.
#[test]
fn pefts_other_kinds_of_prompt_give_pefts_logits() {
    let golden =
        TensorFile::open_safetensors(&fixture("peft/kinds/golden.safetensors")).expect("the golden file");
    let read = |name: &str| {
        let shape = golden.shape(name).expect(name).to_vec();
        (golden.tensor(name, &shape).expect("read"), shape)
    };
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let (values, shape) = read(name);
        values.chunks(shape[1]).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
    };
    let mut prompts = Vec::new();
    for (folder, task) in [
        ("p_tuning", None),
        ("named", None),
        ("named/reviews", None),
        ("multitask", Some(0)),
        ("multitask", Some(1)),
        ("multitask_generate", Some(0)),
        ("multitask_generate", Some(1)),
    ] {
        let adapter = import_with(&fixture("peft/kinds").join(folder), &choosing(task, None)).expect(folder);
        assert_eq!((adapter.prompt.length(), adapter.prompt.width()), (6, 64), "{folder}");
        let note = adapter.note.unwrap_or_default();
        let said = match folder {
            "multitask" => "",
            "multitask_generate" => "not where it generates",
            _ => "never uses",
        };
        assert!(note.contains(said) && note.is_empty() == said.is_empty(), "{folder}: {note}");
        let name = format!("{}_{}", folder.split('/').next().expect("a name"), task.unwrap_or(0));
        let labels =
            if folder == "multitask_generate" { rows(&format!("{name}_labels")) } else { rows("labels") };
        let (expected, shape) = read(&name);
        assert_eq!(shape[1], labels[0].len(), "{name}");
        let actual = logits(&adapter.prompt, &rows("ids"), &labels);
        assert_eq!(actual.len(), expected.len());
        let largest =
            actual.iter().zip(&expected).map(|(a, &b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
        assert!(largest <= 1e-4, "{name}: logits differ by {largest}");
        prompts.push(adapter.prompt.into_values());
    }
    assert_eq!(prompts[1], prompts[2], "the outer folder is as good as the adapter's");
    assert_ne!(prompts[3], prompts[4], "two tasks, two prompts");
}

#[test]
fn an_adapter_of_several_tasks_or_several_adapters_must_be_chosen() {
    let multitask = fixture("peft/kinds/multitask");
    for (settings, said) in [(choosing(None, None), "0 to 1"), (choosing(Some(2), None), "0 to 1")] {
        let error = import_with(&multitask, &settings).expect_err("which task?").to_string();
        assert!(error.contains("--adapter-task") && error.contains(said), "{error}");
    }
    let error =
        import_with(&fixture("peft/saved"), &choosing(Some(0), None)).expect_err("one task").to_string();
    assert!(error.contains("PROMPT_TUNING") && error.contains("leave it out"), "{error}");
    let folder = tempdir().expect("folder");
    for name in ["films", "reviews"] {
        let inner = folder.path().join(name);
        std::fs::create_dir(&inner).expect("made");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(fixture("peft/saved").join(file), inner.join(file)).expect("copied");
        }
    }
    let error = import(folder.path()).expect_err("which of the two?").to_string();
    assert!(error.contains("films") && error.contains("reviews"), "{error}");
}

#[test]
fn weights_of_an_adapter_without_its_configuration_say_what_is_not_known() {
    let folder = tempdir().expect("folder");
    let path = folder.path().join("adapter_model.safetensors");
    std::fs::copy(fixture("peft/saved/adapter_model.safetensors"), &path).expect("copied");
    let whole = import(&path).expect("imported");
    assert_eq!(whole.prompt.length(), 12);
    let note = whole.note.expect("half of it may be the decoder's");
    assert!(note.contains("warning") && note.contains("--length") && note.contains("12 rows"), "{note}");
    let half = import_with(&path, &choosing(None, Some(6))).expect("imported");
    assert_eq!(half.prompt.values(), import(&fixture("peft/saved")).expect("imported").prompt.values());
    assert!(half.note.expect("rows are left out").contains("first 6 of 12"));
    for length in [0, 13] {
        let error = import_with(&path, &choosing(None, Some(length))).expect_err("rows").to_string();
        assert!(error.contains("--length") && error.contains("1 to 12"), "{error}");
    }
    // A file of one submodule's rows, or another program's, is not in doubt.
    assert_eq!(import(&fixture("torch/bare.pt")).expect("imported").note, None);
}

#[test]
fn what_is_exported_to_peft_has_one_submodule_and_comes_back() {
    let folder = tempdir().expect("folder");
    let out = folder.path().join("adapter");
    let checkpoint = Checkpoint::open(&fixture("tiny")).expect("a model");
    let values: Vec<f32> = (0..5 * 64).map(|index| index as f32 / 7.0).collect();
    let saved = prompt("mine", &values, 5);
    prompts::export(&saved, checkpoint.config(), "google/tiny", &out).expect("exported");
    let json = std::fs::read(out.join("adapter_config.json")).expect("a configuration");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    for (key, value) in [
        ("peft_type", serde_json::json!("PROMPT_TUNING")),
        ("task_type", serde_json::json!("SEQ_2_SEQ_LM")),
        ("num_virtual_tokens", serde_json::json!(5)),
        ("num_transformer_submodules", serde_json::json!(1)),
        ("token_dim", serde_json::json!(64)),
        ("num_layers", serde_json::json!(2)),
        ("num_attention_heads", serde_json::json!(4)),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    let back = import(&out).expect("imported");
    assert_eq!((back.prompt.values(), back.note), (saved.values(), None));
    assert_eq!(back.model.as_deref(), Some("google/tiny"));

    let occupied = prompts::export(&saved, checkpoint.config(), "m", &out).expect_err("an adapter is there");
    assert!(occupied.to_string().contains("holds an adapter"), "{occupied}");
    let narrow = prompt("narrow", &values, 10);
    let error =
        prompts::export(&narrow, checkpoint.config(), "m", &folder.path().join("new")).expect_err("width");
    assert!(error.to_string().contains("width 64") && error.to_string().contains("width 32"), "{error}");
    assert!(!folder.path().join("new").exists(), "nothing is left of what was refused");
}

#[test]
fn adapters_of_other_kinds_say_what_they_are() {
    let folder = tempdir().expect("folder");
    let config = folder.path().join("adapter_config.json");
    std::fs::copy(
        fixture("peft/saved/adapter_model.safetensors"),
        folder.path().join("adapter_model.safetensors"),
    )
    .expect("copied");
    for (json, said) in [
        (r#"{"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM"}"#, "LORA"),
        (r#"{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}"#, "CAUSAL_LM"),
        (r#"{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5}"#, "12 rows"),
        (r#"{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 0}"#, "12 rows"),
        (r#"{"task_type": "SEQ_2_SEQ_LM"}"#, "peft_type"),
        ("{", "adapter_config.json, line 1"),
    ] {
        std::fs::write(&config, json).expect("written");
        let error = import(folder.path()).expect_err(json).to_string();
        assert!(error.contains(said), "{json}: {error}");
    }
    let empty = tempdir().expect("folder");
    let error = import(empty.path()).expect_err("nothing there").to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn numpy_arrays_of_every_float_and_order_are_the_same_prompt() {
    let values = [1.0_f32, -2.5, 3.0, 0.5, 0.25, -8.0];
    let by_columns = [1.0_f32, 0.5, -2.5, 0.25, 3.0, -8.0];
    let half = |bytes: fn(half::f16) -> [u8; 2]| -> Vec<u8> {
        values.iter().flat_map(|&value| bytes(half::f16::from_f32(value))).collect()
    };
    let double = |bytes: fn(f64) -> [u8; 8]| -> Vec<u8> {
        values.iter().flat_map(|&value| bytes(f64::from(value))).collect()
    };
    let big: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    for (what, file) in [
        ("little", npy("<f4", false, "(2, 3)", &floats(&values))),
        ("big", npy(">f4", false, "(2, 3)", &big)),
        ("columns first", npy("<f4", true, "(2, 3)", &floats(&by_columns))),
        ("half", npy("<f2", false, "(2, 3)", &half(half::f16::to_le_bytes))),
        ("half, big", npy(">f2", false, "(2, 3)", &half(half::f16::to_be_bytes))),
        ("double", npy("<f8", false, "(2, 3)", &double(f64::to_le_bytes))),
        ("double, big", npy(">f8", false, "(2, 3)", &double(f64::to_be_bytes))),
        ("a batch of one", npy("<f4", false, "(1, 2, 3)", &floats(&values))),
    ] {
        let prompt = import_bytes("p.npy", &file).expect(what);
        assert_eq!((prompt.length(), prompt.width(), prompt.values()), (2, 3, &values[..]), "{what}");
        assert_eq!(prompt.metadata().origin.as_deref(), Some("an array of NumPy, p.npy"));
    }
    let good = floats(&values);
    for (what, file, said) in [
        ("integers", npy("<i8", false, "(2, 3)", &good), "<i8"),
        ("one dimension", npy("<f4", false, "(6,)", &good), "[6]"),
        ("a batch of two", npy("<f4", false, "(2, 1, 3)", &good), "[2, 1, 3]"),
        ("no dimension", npy("<f4", false, "()", &good), "[]"),
        ("too short", npy("<f4", false, "(2, 3)", &good[1..]), "23 bytes"),
        ("a product that overflows", npy("<f4", false, "(4294967296, 4294967296)", &good), "24 bytes"),
        (
            "records",
            npy("<f4", false, "(2, 3)", &good).iter().map(|&b| if b == b'\'' { b'"' } else { b }).collect(),
            "records",
        ),
        ("not finite", npy("<f4", false, "(1, 2)", &floats(&[1.0, f32::NAN])), "NaN"),
        ("nothing", vec![], "another kind"),
    ] {
        let error = import_bytes("p.npy", &file).expect_err(what).to_string();
        assert!(error.contains(said), "{what}: {error}");
    }
}

#[test]
fn torch_files_with_one_matrix_are_prompts() {
    for (name, shape) in
        [("bare.pt", (5, 4)), ("parameter.pt", (5, 4)), ("nested.pt", (5, 4)), ("slice.pt", (4, 4))]
    {
        let imported = import(&fixture("torch").join(name)).expect(name);
        assert_eq!((imported.prompt.length(), imported.prompt.width()), shape, "{name}");
    }
    // As of an array of NumPy, whatever the width of the numbers and with dimensions of length 1 before the two.
    let bare = import(&fixture("torch/bare.pt")).expect("imported").prompt;
    for name in ["double.pt", "batch_of_one.pt"] {
        let prompt = import(&fixture("torch").join(name)).expect(name).prompt;
        assert_eq!((prompt.length(), prompt.width(), prompt.values()), (5, 4, bare.values()), "{name}");
    }
    let error = import(&fixture("torch/state_dict_f32.bin")).expect_err("many matrices").to_string();
    assert!(error.contains("matrices among"), "{error}");
    for (name, said) in [("batch_of_two.pt", "one tensor of shape [2, 5, 4]"), ("integers.pt", "shape [6]")] {
        let error = import(&fixture("torch").join(name)).expect_err(name).to_string();
        assert!(error.contains(said) && !error.contains("\"\""), "{name}: {error}");
    }
    assert!(import(&fixture("torch/command.pt")).is_err(), "nothing is executed");
    let error = import_bytes("p.onnx", b"x").expect_err("another format").to_string();
    assert!(error.contains(".onnx") && error.contains(".npy"), "{error}");
}

#[test]
fn the_authors_and_googles_released_files_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/foreign_prompts");
    for name in ["attempt_record.pt", "google_sst2.npy"] {
        let path = folder.join(name);
        if !path.is_file() {
            println!("skipped: {} is not there", path.display());
            continue;
        }
        let prompt = import(&path).expect(name).prompt;
        assert_eq!((prompt.length(), prompt.width()), (100, 768), "{name}");
        let sum: f64 = prompt.values().iter().map(|&value| f64::from(value).abs()).sum();
        assert!(sum > 1_000.0, "{name} is not empty");
    }
}

#[test]
fn the_authors_scorer_is_read_from_its_files() {
    let folder = tempdir().expect("folder");
    // bare.pt is 5 x 4: the file of one segment is as good as another's here.
    std::fs::copy(fixture("torch/bare.pt"), folder.path().join("attn_W_down.pt")).expect("copied");
    std::fs::copy(fixture("torch/slice.pt"), folder.path().join("attn_Wa_weights.pt")).expect("copied");
    let scorer = SavedScorer::load(folder.path()).expect("a scorer");
    assert_eq!(
        scorer.segments.keys().collect::<Vec<_>>(),
        ["w_down"],
        "the unused linear weight is left out"
    );
    let path = folder.path().join("scorer.safetensors");
    scorer.save(&path).expect("saved");
    assert_eq!(SavedScorer::load(&path).expect("loaded"), scorer);
    assert!(scorer.segment("w_down", &[5, 4]).expect("its shape").is_some());
    assert!(scorer.segment("w_up", &[4, 5]).expect("not there").is_none());
    let error = scorer.segment("w_down", &[100, 4]).expect_err("another rank").to_string();
    assert!(error.contains("--bottleneck-dim") && error.contains("[5, 4]"), "{error}");

    prompt("p", &[1.0; 8], 2).save(&path).expect("saved over it");
    let error = SavedScorer::load(&path).expect_err("a prompt").to_string();
    assert!(error.contains("scorer"), "{error}");
}

/// `prompt` is what our own files call their tensor, and a name that others think of too.
#[test]
fn a_matrix_that_others_call_a_prompt_is_imported_whatever_its_element_and_shape() {
    let folder = tempdir().expect("a temporary folder");
    for name in ["prompt", "weights"] {
        for (dtype, shape, bytes) in [
            (
                "F64",
                "[2,2]",
                [1.0_f64, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
            ),
            ("F32", "[1,2,2]", floats(&[1.0, 2.0, 3.0, 4.0])),
            ("F32", "[2,2]", floats(&[1.0, 2.0, 3.0, 4.0])),
        ] {
            let end = bytes.len();
            let header =
                format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.bytes().chain(bytes));
            let path = folder.path().join("p.safetensors");
            std::fs::write(&path, file).expect("written");
            let prompt = import(&path).expect("a prompt").prompt;
            assert_eq!((prompt.length(), prompt.width()), (2, 2), "{name} {dtype} {shape}");
            assert_eq!(prompt.values(), [1.0, 2.0, 3.0, 4.0], "{name} {dtype} {shape}");
        }
    }
}

#[test]
fn a_merged_prompt_is_the_weighted_mean_of_its_parts() {
    let (a, b) = (prompt("a", &[1.0, 2.0, 3.0, 4.0], 2), prompt("b", &[5.0, 6.0, 7.0, 8.0], 2));
    let merged = merge("m", &[a.clone(), b.clone()], &[3.0, 1.0]).expect("merged");
    assert_eq!(merged.values(), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(merged.metadata().origin.as_deref(), Some("the mean of 0.7500 a, 0.2500 b"));
    merge("m", &[], &[]).expect_err("nothing");
    merge("m", std::slice::from_ref(&a), &[1.0, 2.0]).expect_err("a weight too many");
    merge("m", &[a.clone(), b.clone()], &[1.0, -1.0]).expect_err("a sum of 0");
    merge("m", &[a.clone(), b.clone()], &[1.0, f64::NAN]).expect_err("no number");
    merge("m", &[a.clone(), prompt("c", &[1.0; 4], 1)], &[1.0, 1.0]).expect_err("lengths");
    let of = |model: &str| {
        let mut about = PromptMetadata::default();
        about.model_sha256 = Some(model.to_owned());
        a.clone().with_metadata(about)
    };
    let error = merge("m", &[of("aaaa"), of("bbbb")], &[1.0, 1.0]).expect_err("two models").to_string();
    assert!(error.contains("aaaa") && error.contains("bbbb"), "{error}");
    let merged = merge("m", &[b.clone(), of("aaaa")], &[1.0, 1.0]).expect("one model known");
    assert_eq!(merged.metadata().model_sha256.as_deref(), Some("aaaa"));

    // Mean rows (2, 3) and (-2, -3): one weight is the cosine 1, the other is cut off at 0.
    let away = prompt("away", &[-1.0, -2.0, -3.0, -4.0], 2);
    let weights = weights_by_similarity(&[a.clone(), away.clone()], Some(&a));
    assert!((weights[0] - 1.0).abs() < 1e-12 && weights[1] == 0.0, "{weights:?}");
    assert_eq!(weights_by_similarity(&[away], Some(&a)), [1.0], "none is like it: all alike");
}

/// Calls `read` with 1,000 copies of `good` that differ from it in some bytes, a cut or an insertion.
fn mutations(good: &[u8], mut read: impl FnMut(&[u8])) {
    let mut random = Random::new(7);
    for _ in 0..1_000 {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len().max(1));
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.below(256) as u8),
                _ if bytes.is_empty() => {}
                _ => bytes[at] = random.below(256) as u8,
            }
        }
        read(&bytes);
    }
}

#[test]
fn a_thousand_damaged_files_of_each_format_are_errors_or_finite_prompts() {
    let values: Vec<f32> = (0..12).map(|index| index as f32).collect();
    let array = npy("<f4", false, "(3, 4)", &floats(&values));
    let torch = std::fs::read(fixture("torch/bare.pt")).expect("read");
    let adapter = std::fs::read(fixture("peft/saved/adapter_model.safetensors")).expect("read");
    let mut read = 0;
    for (name, good) in [("p.npy", array), ("p.pt", torch), ("p.safetensors", adapter)] {
        mutations(&good, |bytes| {
            if let Ok(prompt) = import_bytes(name, bytes) {
                assert!(prompt.values().iter().all(|value| value.is_finite()));
                assert_eq!(prompt.values().len(), prompt.length() * prompt.width());
                read += 1;
            }
        });
    }
    assert!(read > 100, "most damage lies in the numbers: {read}");
    let folder = tempdir().expect("folder");
    let weights = folder.path().join("adapter_model.safetensors");
    std::fs::copy(fixture("peft/saved/adapter_model.safetensors"), weights).expect("copied");
    let config = std::fs::read(fixture("peft/saved/adapter_config.json")).expect("read");
    mutations(&config, |bytes| {
        std::fs::write(folder.path().join("adapter_config.json"), bytes).expect("written");
        let _ = import(folder.path());
    });
    let scorer = folder.path().join("scorer.safetensors");
    let mut segments = std::collections::BTreeMap::new();
    segments.insert("w_down".to_owned(), (vec![3, 4], values));
    SavedScorer::new(segments, Some("ab".into()), Some(2.0)).save(&scorer).expect("saved");
    let good = std::fs::read(&scorer).expect("read");
    mutations(&good, |bytes| {
        std::fs::write(&scorer, bytes).expect("written");
        let _ = SavedScorer::load(&scorer);
    });
}

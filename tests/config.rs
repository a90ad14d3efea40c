//! Settings: one declaration gives the flag, the key, the default, the range and the page that describes them.

use std::path::Path;
use std::process::Output;

use promptmix::config::{RunConfig, SETTINGS, Values, reference_page};

#[path = "common/program.rs"]
mod program;

fn promptmix(arguments: &[&str]) -> Output {
    program::promptmix().args(arguments).output().expect("the program")
}

fn of_toml(text: &str) -> promptmix::Result<RunConfig> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, text).expect("written");
    RunConfig::from_toml(&path)
}

/// `PROMPTMIX_WRITE_DOCS=1 cargo test --test config` writes the page anew.
#[test]
fn the_page_of_settings_is_what_the_declaration_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    if std::env::var_os("PROMPTMIX_WRITE_DOCS").is_some() {
        std::fs::write(&path, reference_page()).expect("written");
    }
    let page = std::fs::read_to_string(&path).expect("docs/config.md");
    assert!(
        page == reference_page(),
        "docs/config.md is of other settings: PROMPTMIX_WRITE_DOCS=1 writes it anew"
    );
}

#[test]
fn every_setting_is_a_flag_and_a_key_with_one_default() {
    let help = promptmix(&["train", "--help"]);
    let help = String::from_utf8(help.stdout).expect("text");
    let json = serde_json::to_value(RunConfig::default()).expect("settings");
    let keys: Vec<&String> = json.as_object().expect("fields").keys().collect();
    let declared: std::collections::BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys.iter().map(|key| key.as_str()).collect::<std::collections::BTreeSet<_>>(), declared);
    assert!(SETTINGS.len() > 50 && declared.len() == SETTINGS.len());
    for setting in SETTINGS {
        assert!(
            help.contains(&format!("--{} ", setting.key)) || help.contains(&format!("--{}[", setting.key)),
            "{}",
            setting.key
        );
        // Where a single value holds the page names it; where none does it says what does.
        let default = json[setting.key].clone();
        let is_value = !(default.is_null() || default == "" || default == serde_json::json!([]));
        assert_eq!(is_value, setting.otherwise.is_none(), "{}", setting.key);
        let shown = setting.default_value();
        assert!(!shown.is_empty(), "{}", setting.key);
        if is_value {
            let value = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            assert_eq!(shown, value, "{}", setting.key);
        }
    }
}

#[test]
fn names_of_older_versions_go_on_as_flags_and_keys() {
    let older = "rank = 7\naccumulate = 3\nwarmup = 11\ninitialisation = \"normal\"\nschedule = \"cosine\"\nclip = 0.5\n\
                 center-inputs = true\n";
    let newer = "bottleneck-dim = 7\ngradient-accumulation-steps = 3\nwarmup-steps = 11\nprompt-init = \"normal\"\n\
                 lr-scheduler = \"cosine\"\nmax-grad-norm = 0.5\nstandardize-inputs = true\n";
    let read = of_toml(older).expect("settings");
    assert_eq!(read, of_toml(newer).expect("settings"));
    assert_ne!(read, RunConfig::default());
    let aliases: Vec<&str> = SETTINGS.iter().flat_map(|setting| setting.aliases).copied().collect();
    assert_eq!(aliases.len(), older.lines().count());
    // As flags: an unusable model is looked at after the flags are read, an unknown flag before.
    for alias in aliases {
        let setting = SETTINGS.iter().find(|setting| setting.aliases.contains(&alias)).expect("its own");
        let value = match setting.values {
            Values::Choice(choices) => choices[0].0,
            Values::Switch => "true",
            _ => "1",
        };
        let output = promptmix(&[
            "train",
            &format!("--{alias}={value}"),
            "--model",
            "/none",
            "--data",
            "/none",
            "--out",
            "/none",
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("unexpected argument"), "{alias}: {said}");
    }
    let both = of_toml("clip = 1.0\nmax-grad-norm = 2.0\n").expect_err("twice").to_string();
    assert!(both.contains("max-grad-norm"), "{both}");
}

/// What is no value of a setting is refused from a file as from a flag, with what may be given.
#[test]
fn values_out_of_range_are_refused_with_the_range() {
    for setting in SETTINGS {
        let (wrong, range) = match setting.values {
            Values::Whole(1, _) => ("0".to_owned(), "1 "),
            Values::Real(_, most) if most < f64::MAX => (format!("{:?}", most * 2.0), "0 to"),
            Values::Real(..) => ("-1.0".to_owned(), "0 or more"),
            Values::Portion => ("1.0".to_owned(), "below 1"),
            Values::Positive(_) => ("0.0".to_owned(), "above 0"),
            _ => continue,
        };
        let text = format!("method = \"prompt-tuning\"\n{} = {wrong}\n", setting.key);
        let refused = of_toml(&text).expect("the type is right").check().expect_err(setting.key).to_string();
        assert!(refused.contains(&format!("--{}", setting.key)) && refused.contains(range), "{refused}");
        let nan = matches!(setting.values, Values::Real(..) | Values::Portion | Values::Positive(_));
        if nan {
            let text = format!("method = \"prompt-tuning\"\n{} = nan\n", setting.key);
            of_toml(&text).expect("a number").check().expect_err("NaN is in no range");
        }
    }
    let wrong = of_toml("method = \"attemt\"").expect_err("no method").to_string();
    assert!(wrong.contains("attempt") && wrong.contains("prompt-tuning"), "{wrong}");
}

/// What a user sets and nothing reads is said, and what is read is not.
#[test]
fn settings_without_effect_are_known_with_the_reason() {
    let ignored = |text: &str| -> Vec<(&'static str, String)> {
        let config = of_toml(text).expect("settings");
        config.check().expect("settings that can be used");
        config.without_effect()
    };
    let tuning = "method = \"prompt-tuning\"\n";
    let mixes = "sources = [\"a\", \"b\"]\n";
    let cases = [
        (tuning, "scorer = \"dot\"", "scorer", "prompt-tuning has no mixture"),
        (tuning, "bottleneck-dim = 7", "bottleneck-dim", "prompt-tuning has no mixture"),
        (tuning, "temperature = 3.0", "temperature", "prompt-tuning has no mixture"),
        (tuning, "freeze-scorer = true", "freeze-scorer", "prompt-tuning has no mixture"),
        (tuning, "scorer-learning-rate = 0.5", "scorer-learning-rate", "prompt-tuning has no mixture"),
        (tuning, "without-target = true", "without-target", "prompt-tuning has no mixture"),
        (tuning, "initial-prompt = \"a\"\nprompt-init = \"normal\"", "initial-prompt", "prompt-init normal"),
        (tuning, "sampling = \"equal\"", "sampling", "there is one task"),
        (tuning, "sampling-temperature = 4.0", "sampling-temperature", "there is one task"),
        (
            tuning,
            "task = \"a,b\"\nsampling-temperature = 4.0",
            "sampling-temperature",
            "sampling temperature",
        ),
        (tuning, "task = \"mrpc\"\nlabel-field = \"stars\"", "label-field", "where its labels are"),
        (tuning, "few-shot = 4\ntraining-rows = 9", "training-rows", "few-shot"),
        (tuning, "draws = 3", "draws", "few-shot"),
        (tuning, "few-shot = 4\ndata-seed = 1\ndraws = 3", "draws", "one draw"),
        (tuning, "data-seed = 3", "data-seed", "no rows are drawn"),
        (mixes, "scorer = \"linear\"\nbottleneck-dim = 7", "bottleneck-dim", "linear has no bottleneck"),
        (mixes, "scorer = \"constant\"\ntemperature = 3.0", "temperature", "constant has no temperature"),
        (mixes, "scorer = \"dot\"\nfreeze-scorer = true", "freeze-scorer", "dot has no numbers"),
        (
            mixes,
            "scorer = \"uniform\"\nscorer-learning-rate = 0.5",
            "scorer-learning-rate",
            "uniform has no numbers",
        ),
        (mixes, "freeze-scorer = true\nscorer-learning-rate = 0.5", "scorer-learning-rate", "is frozen"),
        (mixes, "without-target = true\nprompt-init = \"normal\"", "prompt-init", "no target prompt"),
        (mixes, "without-target = true\ninitial-prompt = \"a\"", "initial-prompt", "no target prompt"),
        (mixes, "pretrain-scorer = true\nlearning-rate = 0.7", "learning-rate", "no target prompt"),
        ("method = \"spot\"\nsources = [\"a\"]\n", "initial-prompt = \"b\"", "initial-prompt", "one source"),
        (
            "method = \"spot\"\nsources = [\"a\"]\n",
            "prompt-init = \"normal\"",
            "sources",
            "prompt-init normal",
        ),
    ];
    for (base, more, key, reason) in cases {
        let found = ignored(&format!("{base}{more}"));
        assert!(SETTINGS.iter().any(|setting| setting.key == key), "{key}");
        assert!(
            matches!(&found[..], [(found, why)] if *found == key && why.contains(reason)),
            "{more}: {found:?}"
        );
    }
    for read in [
        "method = \"prompt-tuning\"\nlearning-rate = 0.1\nprompt-init = \"normal\"\ntraining-rows = 9\ndata-seed = 2",
        "method = \"prompt-tuning\"\ntask = \"a,b\"\nsampling = \"temperature\"\nsampling-temperature = 4.0",
        "method = \"prompt-tuning\"\ntemplate = \"{a}\"\nlabel-field = \"stars\"\nfew-shot = 4\ndraws = 3",
        "method = \"spot\"\nsources = [\"a\", \"b\"]\ninitial-prompt = \"c\"",
        "sources = [\"a\"]\nscorer = \"token\"\nbottleneck-dim = 7\ntemperature = 3.0\nscorer-learning-rate = 0.5",
        "sources = [\"a\"]\nscorer = \"dot\"\nlearn-temperature = true\ntemperature = 3.0\nscorer-learning-rate = 0.5",
        "sources = [\"a\"]\nfreeze-scorer = true\nlearn-temperature = true\nscorer-learning-rate = 0.5",
        "sources = [\"a\"]\nwithout-target = true\npreset = \"reference\"\nlearning-rate = 0.7",
        "sources = [\"a\"]\ninitial-prompt = \"c\"",
    ] {
        assert_eq!(ignored(read), [], "{read}");
    }
}

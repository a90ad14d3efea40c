//! Labels that a tokenizer cannot write, writes as others, or writes otherwise than they were given.
#![cfg(feature = "cli")]

#[path = "common/program.rs"]
mod program;
#[path = "common/sentencepiece.rs"]
mod sentencepiece;

use std::fs;
use std::path::Path;

use promptmix::evaluate::Spellings;
use promptmix::pretrained::{T5Config, Tokenizer};
use promptmix::tasks::Task;

fn tokenizer() -> Tokenizer {
    let mut pieces = vec![
        ("<pad>".to_owned(), 0.0, 3),
        ("</s>".to_owned(), 0.0, 3),
        ("<unk>".to_owned(), 0.0, 2),
        ("▁".to_owned(), -2.0, 1),
    ];
    pieces.extend(('a'..='z').chain('0'..='9').chain(['.']).map(|letter| (letter.to_string(), -3.0, 1)));
    let bytes = sentencepiece::bytes(&pieces, 1, false, &[]);
    let mut config = T5Config::t5_small();
    config.vocab_size = 256;
    Tokenizer::from_sentencepiece(Path::new("spiece.model"), &bytes, None, &config).expect("a tokenizer")
}

fn spellings(labels: &str) -> promptmix::Result<Spellings> {
    let task = Task::generic("mine", "{text}", Some(labels), "label").expect("a task");
    Spellings::new(&tokenizer(), &task)
}

#[test]
fn text_without_a_piece_is_named_with_its_label() {
    for (labels, label, letter) in [
        ("👎,👍", "👎", "👎"),
        ("cold<warm,red", "cold<warm", "<"),
        ("red,straße", "straße", "ß"),
        ("A,b", "A", "A"),
    ] {
        let error = spellings(labels).expect_err(labels).to_string();
        assert!(error.contains(&format!("`{label}`, of which {letter} is unknown")), "{labels}: {error}");
        assert!(error.contains("mine") && error.contains("--labels VALUE=WORD"), "{labels}: {error}");
    }
    assert!(spellings("red,green").expect("both can be written").respelled().is_empty());
}

#[test]
fn labels_of_the_same_tokens_or_with_an_end_inside_are_refused() {
    let error = spellings("red  water,red water").expect_err("alike but for a blank").to_string();
    assert!(error.contains("`red  water` and `red water`"), "{error}");
    let error = spellings("red</s>x,green").expect_err("ends early").to_string();
    assert!(error.contains("the end of a sequence"), "{error}");
    let error = spellings("<pad>red,red").expect_err("a mark says nothing").to_string();
    assert!(error.contains("both written as"), "{error}");
}

#[test]
fn an_answer_is_a_label_if_it_is_what_the_label_reads_as() {
    let spellings = spellings("red  water,green").expect("both can be written");
    assert_eq!(spellings.respelled(), [("red  water", "red water")]);
    assert_eq!(spellings.label("red water".into()), "red  water");
    assert_eq!(spellings.label("green".into()), "green");
    assert_eq!(spellings.label("red".into()), "red");
    // A number's labels are those that it may be rounded to; free answers have none.
    assert!(Spellings::new(&tokenizer(), &Task::named("stsb").expect("known")).is_ok());
    assert_eq!(
        Spellings::new(&tokenizer(), &Task::named("squad").expect("known")).expect("free"),
        Spellings::default()
    );
}

#[test]
fn a_run_learns_and_answers_a_label_that_is_read_back_otherwise() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(at("data")).expect("a folder");
    // Every row is the same, so that few steps are enough to say its label always.
    let rows = "{\"text\": \"a film\", \"label\": 0}\n".repeat(2);
    for name in ["data/train.jsonl", "data/validation.jsonl"] {
        fs::write(at(name), &rows).expect("written");
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").display().to_string();
    let run = |labels: &str, out: &str, more: &[&str]| {
        let output = program::promptmix()
            .args([
                "train",
                "--model",
                &model,
                "--template",
                "{text}",
                "--labels",
                labels,
                "--data",
                &at("data"),
            ])
            .args([
                "--method",
                "prompt-tuning",
                "--prompt-length",
                "8",
                "--steps",
                "200",
                "--batch-size",
                "2",
            ])
            .args([
                "--validate-every",
                "200",
                "--learning-rate",
                "1",
                "--schedule",
                "constant",
                "--warmup",
                "0",
            ])
            .args(["--dropout", "0", "--threads", "1", "--out", &at(out)])
            .args(more)
            .output()
            .expect("the binary runs");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    };
    let (trained, said) = run("good  film,bad", "run", &[]);
    assert!(trained && said.contains("`good  film` as `good film`"), "{said}");
    assert!(said.contains("best validation 1.0000"), "the label it learnt is the label: {said}");
    let (trained, said) = run("👎,👍", "other", &[]);
    assert!(!trained && said.contains("unknown"), "{said}");
    let (trained, said) = run("good film,bad", "other", &["--max-target-length", "2"]);
    assert!(!trained && said.contains("at least 3, the tokens of the longest label"), "{said}");
    assert!(!Path::new(&at("other")).exists());
}

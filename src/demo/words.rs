//! The words that generated sentences are made of: lower case, and known to the bundled tokenizer.
//!
//! The lists of opinions are disjoint, and no other list shares a word with them, so that a sentence's label can be
//! read off its words again.

/// What is said of something good.
pub const POSITIVE: &[&str] = &[
    "wonderful",
    "brilliant",
    "delightful",
    "great",
    "good",
    "excellent",
    "beautiful",
    "perfect",
    "lovely",
    "impressive",
    "enjoyable",
    "charming",
    "pleasant",
    "superb",
    "remarkable",
    "fresh",
];
/// What is said of something bad.
pub const NEGATIVE: &[&str] = &[
    "bad",
    "dull",
    "boring",
    "awful",
    "terrible",
    "weak",
    "poor",
    "ugly",
    "tedious",
    "painful",
    "bland",
    "disappointing",
    "horrible",
    "lame",
    "dreadful",
    "stupid",
];
/// Parts of a film.
pub const FILM: &[&str] = &[
    "film", "movie", "story", "plot", "comedy", "drama", "script", "cast", "ending", "music", "dialogue",
    "acting", "humor", "score",
];
/// What is eaten and drunk.
pub const FOOD: &[&str] =
    &["food", "bread", "coffee", "fish", "dinner", "water", "soup", "cake", "rice", "wine", "meal", "cheese"];
/// What a guest finds in a house.
pub const STAY: &[&str] = &[
    "room", "house", "staff", "view", "service", "window", "desk", "building", "bed", "garden", "street",
    "hall",
];
/// How much.
pub const DEGREE: &[&str] = &["very", "really", "so", "rather", "quite", "too"];
/// Who reports tell of.
pub const AGENT: &[&str] =
    &["company", "president", "court", "government", "group", "school", "city", "police", "bank", "state"];
/// What they did: before now, and later.
pub const ACT: &[(&str, &str)] = &[
    ("bought", "buy"),
    ("built", "build"),
    ("left", "leave"),
    ("found", "find"),
    ("sold", "sell"),
    ("closed", "close"),
    ("opened", "open"),
    ("made", "make"),
];
/// To what.
pub const OBJECT: &[&str] =
    &["house", "school", "building", "office", "film", "street", "church", "garden", "bank"];
/// Times before now.
pub const BEFORE: &[&str] = &["yesterday", "last week", "last year", "last night", "on tuesday", "in march"];
/// Times to come; none is among [`BEFORE`].
pub const LATER: &[&str] = &["tomorrow", "next week", "next year", "next month", "on friday", "in may"];
/// Places.
pub const PLACE: &[&str] = &["in london", "in new york", "in america", "in the city", "near the church"];
/// Who has a part in an event.
pub const EVENT_AGENT: &[&str] =
    &["teacher", "doctor", "writer", "family", "minister", "artist", "actor", "player", "woman", "man"];
/// What they did: before now, and later. None is among [`ACT`].
pub const EVENT_ACT: &[(&str, &str)] = &[
    ("wrote", "write"),
    ("won", "win"),
    ("started", "start"),
    ("finished", "finish"),
    ("lost", "lose"),
    ("saw", "see"),
    ("gave", "give"),
    ("began", "begin"),
];
/// To what.
pub const EVENT_OBJECT: &[&str] =
    &["book", "game", "song", "letter", "race", "job", "trip", "paper", "show", "war"];
/// Times before now. None is among [`BEFORE`].
pub const EVENT_BEFORE: &[&str] = &["last month", "last summer", "a week ago", "on thursday", "in june"];
/// Times to come. None is among [`LATER`].
pub const EVENT_LATER: &[&str] = &["soon", "next summer", "in a week", "on sunday", "in july"];
/// What one goes to see. None is among [`FILM`], [`FOOD`] or [`STAY`], nor are those that follow.
pub const SHOW: &[&str] = &["concert", "opera", "dance", "festival", "tour", "lecture", "circus", "parade"];
/// How one gets about.
pub const TRAVEL: &[&str] = &["flight", "train", "bus", "ferry", "road", "bridge", "boat", "journey"];
/// What there is to a sport.
pub const SPORT: &[&str] = &["match", "team", "season", "league", "coach", "stadium", "tennis", "goal"];

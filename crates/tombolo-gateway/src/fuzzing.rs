//! What `cargo xtask fuzz` throws bytes at, and the ordinary tests a little: parsing and rewriting, each beside another reading.
//!
//! Invariant: a function here returns for bytes that are treated as they should be, and panics for all others.

mod connection;
mod strict;
mod words;

pub use self::connection::guard;
pub use self::words::{config, headers, path};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

    type Target = fn(&[u8]);

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        let files = fs::read_dir(folder).unwrap();
        files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn what_the_fuzzing_begins_with_is_treated_as_it_should_be() {
        let targets: [(&str, Target); 4] =
            [("guard", guard), ("path", path), ("headers", headers), ("config", config)];
        for (name, target) in targets {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name}");
            for seed in seeds {
                target(&seed);
                (0..seed.len()).for_each(|end| target(&seed[..end]));
            }
        }
    }

    const WORDS: [&str; 28] = [
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST /x HTTP/1.1\r\nHost: a\r\n",
        "GET /old HTTP/1.0\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:",
        "Connection: close\r\n",
        "Upgrade: websocket\r\n",
        "Expect: 100-continue\r\n",
        "X: y\r\n",
        "\r\n",
        "\n",
        "\r",
        "5\r\nhello\r\n",
        "5;a=b\r\n",
        "0\r\n\r\n",
        "hello",
        "0",
        "+",
        "chunked",
        " ",
        "\t",
        "\x0b",
        "\x0c",
        "\0",
        ":",
        ",",
    ];

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(0x070b_0107),
            cases: 2000,
            ..ProptestConfig::default()
        })]

        #[test]
        fn whatever_is_put_together_of_words_of_http_has_one_reading(
            pieces in any::<[u8; 2]>(),
            words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..16),
        ) {
            let mut bytes = pieces.to_vec();
            words.iter().for_each(|word| bytes.extend_from_slice(word.as_bytes()));
            guard(&bytes);
        }

        #[test]
        fn whatever_a_path_is_put_together_of_it_is_understood_in_one_way(
            words in prop::collection::vec(
                prop::sample::select(&["/", "a", "b", ".", "..", "%2e", "%2F", "%61", "%", ";", "orders", "é", "\\", "?"][..]),
                0..10,
            ),
        ) {
            path(format!("/{}", words.concat()).as_bytes());
        }

        #[test]
        fn whatever_a_client_says_nothing_of_ours_is_left(
            lines in prop::collection::vec(("(connection|te|x-user|tombolo-|X_User|remote-|[a-z-]{1,4})[a-z]{0,3}", "[a-z, \u{ff}-]{0,12}"), 0..24),
        ) {
            let text: String = lines.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            headers(text.as_bytes());
        }
    }
}

// SPDX-License-Identifier: MIT
#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "text/detokenizer.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

using Ids = std::vector<int32_t>;
using testing::AllOf;
using testing::HasSubstr;

std::string folder() {
  return std::string(FLASH_TESTDATA) + "/tokenizers/";
}

nlohmann::json read_json(const std::string& name) {
  std::ifstream file(folder() + name);
  return nlohmann::json::parse(file);
}

std::string read_text(const std::string& name) {
  std::ifstream file(folder() + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::unique_ptr<Tokenizer> load(const std::string& file) {
  Result<std::unique_ptr<Tokenizer>> t = Tokenizer::from_file(folder() + file);
  EXPECT_TRUE(t.ok()) << t.status().message();
  return t.ok() ? std::move(t).value() : nullptr;
}

// Every tokenizer of testdata/tokenizers, against what Hugging Face's
// tokenizers makes of the same texts (tools/record_tokenizer_goldens.py).
class Goldens : public testing::TestWithParam<const char*> {};

TEST_P(Goldens, IdsAndTextsAreThoseOfHuggingFace) {
  const std::string name = GetParam();
  const auto tokenizer = load(name + ".json");
  ASSERT_NE(tokenizer, nullptr);
  const auto texts = read_json("texts.json");
  const auto goldens = read_json(name + ".goldens.json");
  ASSERT_EQ(goldens["rows"].size(), texts.size());
  ASSERT_GE(texts.size(), 400u);
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    const auto& row = goldens["rows"][i];
    const auto plain = tokenizer->encode(text, false);
    ASSERT_TRUE(plain.ok()) << plain.status().message();
    EXPECT_EQ(*plain, row["ids"].get<Ids>()) << "text " << i << ": " << text;
    const auto full = tokenizer->encode(text, true);
    ASSERT_TRUE(full.ok());
    EXPECT_EQ(full->size() - plain->size(), row["extra"].get<size_t>());
    EXPECT_EQ(tokenizer->decode(*full, true), row["text"].get<std::string>())
        << "text " << i;
  }
  EXPECT_EQ(tokenizer->encode("x", true).value(),
            goldens["with_special_x"].get<Ids>());
}

TEST_P(Goldens, StreamsGiveTheTextOfTheWhole) {
  const auto tokenizer = load(std::string(GetParam()) + ".json");
  ASSERT_NE(tokenizer, nullptr);
  const uint32_t seed = 20240611;
  std::mt19937 random(seed);
  const auto below = [&](size_t n) {
    return static_cast<size_t>(random()) % n;
  };
  for (int round = 0; round < 500; ++round) {
    Ids ids(below(40));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(below(tokenizer->vocab_size() + 2)) - 1;
    }
    const bool skip = below(2) == 0;
    Detokenizer stream(*tokenizer, skip);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      ASSERT_EQ(find_invalid_utf8(piece), std::string::npos);
      text += piece;
    }
    text += stream.finish();
    ASSERT_EQ(text, tokenizer->decode(ids, skip))
        << "seed " << seed << ", round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers,
                         Goldens,
                         testing::Values("deepseek",
                                         "gpt2",
                                         "llama3",
                                         "o200k",
                                         "oddities",
                                         "qwen2",
                                         "smollm",
                                         "stories260k",
                                         "tekken",
                                         "unigram"),
                         [](const auto& p) { return std::string(p.param); });

TEST(Tokenizer, ByteLevelTokenizersLoseNothing) {
  const auto texts = read_json("texts.json");
  for (const char* name : {"gpt2", "llama3", "o200k", "smollm"}) {
    const auto tokenizer = load(std::string(name) + ".json");
    for (const auto& entry : texts) {
      const auto text = entry.get<std::string>();
      if (text.find("<|return|>") != std::string::npos) continue;  // rstrip
      EXPECT_EQ(
          tokenizer->decode(tokenizer->encode(text, false).value(), false),
          text)
          << name;
    }
  }
}

// What SentencePiece does with the spaces of a text where the model says
// remove_extra_whitespaces.
std::string squeezed(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  if (out.ends_with(' ')) out.pop_back();
  return out;
}

// The same model as a SentencePiece file. Its tokenizer.json, as Hugging Face
// converts it, leaves spaces as they are.
TEST(Tokenizer, SentencePieceFileEqualsTokenizerJson) {
  const auto json = load("stories260k.json");
  const auto model = load("stories260k.model");
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->vocab_size(), json->vocab_size());
  int compared = 0;
  for (const auto& entry : read_json("texts.json")) {
    const auto text = entry.get<std::string>();
    // Spaces beside a special token or U+2581: not as plain.
    if (text.find("s>") != text.npos || text.find("<unk>") != text.npos ||
        text.find("\u2581") != text.npos) {
      continue;
    }
    const Ids ids = model->encode(text, true).value();
    EXPECT_EQ(ids, json->encode(squeezed(text), true).value()) << text;
    EXPECT_EQ(model->decode(ids, true), json->decode(ids, true));
    ++compared;
  }
  EXPECT_GT(compared, 380);
  EXPECT_EQ(model->special_token("bos_token"), "<s>");
  EXPECT_EQ(model->eos_ids(), Ids{2});
}

// GGUF metadata made from a tokenizer.json.
GgufVocab gguf_of(const std::string& name) {
  const auto document = read_json(name + ".json");
  const auto& model = document["model"];
  std::vector<std::string> tokens(model["vocab"].size() +
                                  document["added_tokens"].size());
  size_t count = 0;
  for (const auto& [token, id] : model["vocab"].items()) {
    tokens[id.get<size_t>()] = token;
    count = std::max(count, id.get<size_t>() + 1);
  }
  GgufVocab v;
  v.model = "gpt2";
  v.types.assign(count, 1);
  for (const auto& added : document["added_tokens"]) {
    const auto id = added["id"].get<size_t>();
    tokens[id] = added["content"];
    count = std::max(count, id + 1);
    v.types.resize(count, 1);
    v.types[id] = added["special"].get<bool>() ? 3 : 4;
  }
  for (size_t i = 0; i < count; ++i) v.tokens.push_back(tokens[i]);
  for (const auto& merge : model["merges"]) {
    v.merges.push_back(merge.is_string() ? merge.get<std::string>()
                                         : merge[0].get<std::string>() + " " +
                                               merge[1].get<std::string>());
  }
  return v;
}

TEST(Tokenizer, GgufPreTokenizersEqualTheFamiliesOwn) {
  const std::pair<const char*, const char*> cases[] = {
      {"gpt2", "gpt-2"},
      {"smollm", "smollm"},
      {"llama3", "llama-bpe"},
      {"qwen2", "qwen2"},
      {"o200k", "gpt-4o"},
      {"deepseek", "deepseek-v3"},
  };
  const auto texts = read_json("texts.json");
  for (const auto& [name, pre] : cases) {
    GgufVocab vocab = gguf_of(name);
    vocab.pre = pre;
    const auto gguf = Tokenizer::from_gguf(vocab);
    ASSERT_TRUE(gguf.ok()) << gguf.status().message();
    const auto json = load(std::string(name) + ".json");
    for (const auto& entry : texts) {
      const auto text = entry.get<std::string>();
      if (text.find("<|return|>") != std::string::npos) continue;  // rstrip
      EXPECT_EQ((*gguf)->encode(text, false).value(),
                json->encode(text, false).value())
          << pre << ": " << text;
    }
  }
}

TEST(Tokenizer, GgufSaysWhatSurroundsATextAndEndsIt) {
  GgufVocab vocab = gguf_of("smollm");
  vocab.pre = "smollm";
  vocab.bos_id = 1757;
  vocab.eos_id = 1758;
  vocab.eot_id = 1756;
  vocab.add_bos = true;
  vocab.chat_template = "{{ messages }}";
  const auto t = Tokenizer::from_gguf(vocab);
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_EQ((*t)->encode("", true).value(), Ids{1757});
  EXPECT_EQ((*t)->eos_ids(), (Ids{1758, 1756}));
  EXPECT_EQ((*t)->bos_id(), 1757);
  EXPECT_EQ((*t)->special_token("eos_token"), "<|im_end|>");
  EXPECT_EQ((*t)->chat_template(), "{{ messages }}");
}

TEST(Tokenizer, UnknownGgufNamesAreNamed) {
  GgufVocab vocab = gguf_of("gpt2");
  vocab.pre = "no-such-thing";
  auto t = Tokenizer::from_gguf(vocab);
  ASSERT_FALSE(t.ok());
  EXPECT_EQ(t.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(t.status().message(), HasSubstr("no-such-thing"));
  vocab.pre = "gpt-2";
  vocab.model = "rwkv";
  t = Tokenizer::from_gguf(vocab);
  ASSERT_FALSE(t.ok());
  EXPECT_THAT(t.status().message(), HasSubstr("rwkv"));
}

TEST(Tokenizer, GgufWithContradictionsIsRefused) {
  const GgufVocab good = gguf_of("gpt2");
  const auto refused = [](const GgufVocab& v, const char* why) {
    const auto t = Tokenizer::from_gguf(v);
    ASSERT_FALSE(t.ok()) << why;
    EXPECT_THAT(t.status().message(), HasSubstr(why));
  };
  GgufVocab v = good;
  v.pre = "gpt-2";
  v.types.pop_back();
  refused(v, "token_type");
  v = good;
  v.pre = "gpt-2";
  v.merges.push_back("nospace");
  refused(v, "merges");
  v = good;
  v.pre = "gpt-2";
  v.merges.push_back("zzzz yyyy");
  refused(v, "merges");
  v = good;
  v.model = "llama";
  refused(v, "scores");
  v.scores.assign(v.tokens.size(), std::nanf(""));
  refused(v, "score");
  v = GgufVocab();
  v.model = "gpt2";
  refused(v, "tokens");
}

TEST(Tokenizer, InvalidUtf8NamesItsOffset) {
  const auto t = load("gpt2.json");
  const auto ids = t->encode("abc\xFFx", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(ids.status().message(), HasSubstr("byte 3"));
}

// What `tokenizers` makes of characters that are newer than its tables.
TEST(Tokenizer, UnicodeVersionsAreThoseOfHuggingFace) {
  const auto after = [](const std::string& normalizer, const char* text) {
    const auto t = Tokenizer::from_bytes(
        R"({"normalizer": {"type": ")" + normalizer + R"("}, "model": {"type":
            "BPE", "byte_fallback": true, "vocab": {)" +
            [] {
              std::string bytes;
              for (int i = 0; i < 256; ++i) {
                char entry[24];
                std::snprintf(entry,
                              sizeof(entry),
                              "\"<0x%02X>\": %d%s",
                              i,
                              i,
                              i < 255 ? ", " : "");
                bytes += entry;
              }
              return bytes;
            }() +
            R"(}, "merges": []}, "decoder": {"type": "ByteFallback"}})",
        "test");
    EXPECT_TRUE(t.ok()) << t.status().message();
    return (*t)->decode((*t)->encode(text, false).value(), false);
  };
  EXPECT_EQ(after("NFD", "a\u0301\u0334"), "a\u0334\u0301");  // reordered
  EXPECT_EQ(after("NFD", "a\u0898\u0334"), "a\u0898\u0334");  // Unicode 14
  EXPECT_EQ(after("NFC", "e\u0301\u09FE\u0301"), "\u00E9\u09FE\u0301");
  EXPECT_EQ(after("NFC", "\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(after("NFKC", "\u32FE\u32FF"), "\u30F2\u32FF");
  EXPECT_EQ(after("StripAccents", "a\u0301b\u0898"), "ab\u0898");
}

TEST(Tokenizer, AMegabyteOfOneCharacterIsNotQuadratic) {
  for (const char* name : {"gpt2", "o200k", "stories260k", "unigram"}) {
    const auto t = load(std::string(name) + ".json");
    for (const char* unit : {"a", " ", "1", "\n", "\xCC\x81", "\xE4\xB8\x80"}) {
      std::string text;
      while (text.size() < (1u << 20)) text += unit;
      const auto ids = t->encode(text, false);
      ASSERT_TRUE(ids.ok()) << ids.status().message();
      EXPECT_GT(ids->size(), 0u);
    }
  }
}

TEST(Tokenizer, KnowsTokensBothWays) {
  const auto t = load("llama3.json");
  EXPECT_EQ(t->vocab_size(), 1758u);
  const auto id = t->token_to_id("<|eot_id|>");
  ASSERT_TRUE(id.has_value());
  EXPECT_TRUE(t->is_special(*id));
  EXPECT_EQ(t->id_to_token(*id), "<|eot_id|>");
  EXPECT_EQ(t->token_to_id("not a token"), std::nullopt);
  EXPECT_EQ(t->id_to_token(-1), std::nullopt);
  EXPECT_EQ(t->id_to_token(1 << 20), std::nullopt);
}

// Hostile files: what each says, and that the message names file and place.
struct Hostile {
  const char* what;
  const char* from;  // replaced once in gpt2.json
  const char* to;
  const char* message;
};

TEST(TokenizerJson, HostileFilesAreRefusedByNameAndPlace) {
  const Hostile cases[] = {
      {"negative id", "\"!\": 0", "\"!\": -1", "-1"},
      {"huge id", "\"!\": 0", "\"!\": 99999999999", "99999999999"},
      {"absurd gap", "\"!\": 0", "\"!\": 16000000", "16000000"},
      {"duplicate id", "\"\\\"\": 1", "\"\\\"\": 0", "twice"},
      {"duplicate token", "\"\\\"\": 1", "\"!\": 1", "twice"},
      {"fraction", "\"!\": 0", "\"!\": 0.5", "integer"},
      {"text for id", "\"!\": 0", "\"!\": \"0\"", "number"},
      {"unknown merge", "\"Ġ t\"", "\"Ġ @@\"", "not in the vocabulary"},
      {"one-part merge", "\"Ġ t\"", "\"Ġt\"", "merge 0"},
      {"merge of three", "\"Ġ t\"", "[\"a\", \"b\", \"c\"]", "merge"},
      {"number as merge", "\"Ġ t\"", "7", "due"},
      {"other model",
       "\"type\": \"BPE\"",
       "\"type\": \"WordPiece\"",
       "WordPiece"},
      {"pre-tokenizer",
       "\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
       "\"pre_tokenizer\": {\"type\": \"Magic\"",
       "Magic"},
      {"regex",
       "\"pre_tokenizer\": {\"type\": \"ByteLevel\"",
       "\"pre_tokenizer\": {\"pattern\": {\"Regex\": \"(a\"}, \"type\": "
       "\"Split\"",
       "(a"},
      {"decoder",
       "\"decoder\": {\"type\": \"ByteLevel\"",
       "\"decoder\": {\"type\": 5",
       "decoder"},
      {"normalizer",
       "\"normalizer\": null",
       "\"normalizer\": [1]",
       "normalizer"},
      {"added id", "\"id\": 1756", "\"id\": 17560000000", "added token"},
      {"taken id", "\"id\": 1756", "\"id\": 5", "which the vocabulary gives"},
      {"unk_token", "\"unk_token\": null", "\"unk_token\": \"nope\"", "nope"},
      {"control character", "\"Ġ t\"", "\"Ġ \nt\"", "control character"},
      {"surrogate", "\"Ġ t\"", "\"\\ud800\"", "surrogate"},
      {"no model", "\"model\": {", "\"modle\": {", "'model' is missing"},
  };
  const std::string good = read_text("gpt2.json");
  ASSERT_TRUE(parse_tokenizer_json(good, "F").ok());
  for (const Hostile& c : cases) {
    std::string text = good;
    const size_t at = text.find(c.from);
    ASSERT_NE(at, std::string::npos) << c.what;
    text.replace(at, std::string_view(c.from).size(), c.to);
    const auto parts = parse_tokenizer_json(text, "F");
    ASSERT_FALSE(parts.ok()) << c.what;
    EXPECT_THAT(parts.status().message(),
                AllOf(HasSubstr("F:"), HasSubstr(c.message)))
        << c.what;
  }
}

TEST(TokenizerJson, TruncatedFilesAreRefused) {
  const std::string good = read_text("llama3.json");
  for (size_t n = 0; n < good.size(); n += 97) {
    const auto parts =
        parse_tokenizer_json(std::string_view(good).substr(0, n), "F");
    ASSERT_FALSE(parts.ok()) << n;
    EXPECT_THAT(parts.status().message(), HasSubstr("F: byte")) << n;
  }
}

TEST(TokenizerJson, FlippedBytesNeverCrash) {
  const std::string good = read_text("oddities.json");
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::string text = good;
    for (int k = 0; k < 3; ++k) {
      // Half of the flips in the small parts in front.
      const size_t range = k == 0 ? 2500 : text.size();
      text[random() % range] = static_cast<char>(random());
    }
    const auto parts = parse_tokenizer_json(text, "F");
    if (parts.ok()) continue;
    EXPECT_EQ(find_invalid_utf8(parts.status().message()), std::string::npos);
  }
}

TEST(SentencePiece, BrokenFilesAreRefused) {
  const std::string good = read_text("stories260k.model");
  const TokenizerConfig config;
  ASSERT_TRUE(parse_sentencepiece(good, "M", config).ok());
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = good;
    bytes[random() % bytes.size()] = static_cast<char>(random());
    (void)parse_sentencepiece(bytes, "M", config);  // any result, no crash
    bytes.resize(random() % bytes.size());
    (void)parse_sentencepiece(bytes, "M", config);
  }
  const auto cut =
      parse_sentencepiece(std::string_view(good).substr(0, 101), "M", config);
  ASSERT_FALSE(cut.ok());
  EXPECT_THAT(cut.status().message(), HasSubstr("M: byte"));
}

TEST(Tiktoken, LinesThatAreNoneAreNamed) {
  const TokenizerConfig config;
  const auto bad = parse_tiktoken("IQ== 0\nIg== x\n", "T", config);
  ASSERT_FALSE(bad.ok());
  EXPECT_THAT(bad.status().message(), HasSubstr("line 2"));
  const auto few = parse_tiktoken("IQ== 0\nIg== 1\n", "T", config);
  ASSERT_FALSE(few.ok());
  EXPECT_THAT(few.status().message(), HasSubstr("2 tokens"));
}

}  // namespace
}  // namespace mlx_flash

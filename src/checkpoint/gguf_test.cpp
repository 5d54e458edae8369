// SPDX-License-Identifier: MIT
#include "checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>

#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;
using testing::raw_bytes;
using testing::tiny_llama_gguf;

// Owns its bytes.
class StringSource : public ByteSource {
 public:
  explicit StringSource(std::string bytes) : bytes_(std::move(bytes)) {}
  const std::string& name() const override { return name_; }
  uint64_t size() const override { return bytes_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) const override {
    return MemorySource(name_, std::as_bytes(std::span(bytes_)))
        .read(offset, out);
  }

 private:
  std::string name_ = "f.gguf";
  std::string bytes_;
};

Result<GgufFile> parse(std::string bytes) {
  return GgufFile::parse(std::make_unique<StringSource>(std::move(bytes)));
}

std::string error_of(std::string bytes) {
  const auto file = parse(std::move(bytes));
  if (file.ok()) return "";
  EXPECT_THAT(file.status().message(), HasSubstr("f.gguf"));
  EXPECT_EQ(file.status().message().find('\n'), std::string::npos);
  return file.status().message();
}
std::string error_of(const GgufWriter& writer) {
  return error_of(writer.bytes());
}

std::string f32s(size_t count) {
  return std::string(count * 4, '\0');
}

TEST(Gguf, ReadsMetadataOfEveryType) {
  const auto file = parse(GgufWriter()
                              .u32("u", 7)
                              .i32("i", -7)
                              .u64("w", 1ULL << 40)
                              .f32("f", 0.5F)
                              .boolean("b", true)
                              .string("s", "text")
                              .strings("ss", {"a", "", "ccc"})
                              .floats("fs", {1, 2})
                              .i32s("is", {-1, 5})
                              .raw("d", 12, raw_bytes<double>(0.25))
                              .raw("u8", 0, raw_bytes<uint8_t>(200))
                              .bytes());
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(**file->unsigned_integer("u"), 7U);
  EXPECT_FALSE(file->unsigned_integer("i").ok());
  EXPECT_EQ(**file->unsigned_integer("w"), 1ULL << 40);
  EXPECT_EQ(**file->unsigned_integer("u8"), 200U);
  EXPECT_EQ(std::get<double>(file->find("f")->scalar), 0.5);
  EXPECT_EQ(std::get<double>(file->find("d")->scalar), 0.25);
  EXPECT_EQ(**file->boolean("b"), true);
  EXPECT_EQ(**file->string("s"), "text");
  const auto strings = file->strings("ss");
  ASSERT_TRUE(strings.ok());
  ASSERT_EQ(strings->size(), 3U);
  EXPECT_EQ((*strings)[2], "ccc");
  EXPECT_THAT(*file->floats("fs"), ElementsAre(1, 2));
  EXPECT_THAT(*file->integers("is"), ElementsAre(-1, 5));
  // Absent is not an error, another type is, and it names the key.
  EXPECT_EQ(*file->string("nope"), std::nullopt);
  EXPECT_TRUE(file->strings("nope")->empty());
  EXPECT_THAT(file->string("u").status().message(), HasSubstr("'u'"));
  EXPECT_THAT(file->strings("is").status().message(),
              HasSubstr("array of int32"));
  EXPECT_FALSE(file->boolean("u").ok());
}

TEST(Gguf, TurnsShapesAndFindsData) {
  for (const uint32_t version : {2U, 3U}) {
    GgufWriter writer(version);
    const auto file = parse(writer.u32("general.alignment", 64)
                                .alignment(64)
                                .tensor("a", {3, 32}, 2, std::string(54, 'x'))
                                .tensor("b", {5}, 0, f32s(5))
                                .tensor("m", {64}, 39, std::string(34, 'y'))
                                .bytes());
    ASSERT_TRUE(file.ok()) << file.status().message();
    const auto& a = file->tensors()[0];
    EXPECT_THAT(a.shape, ElementsAre(3, 32));
    EXPECT_EQ(a.type_name, "Q4_0");
    EXPECT_EQ(a.format->kind, WeightKind::kQ4_0);
    EXPECT_EQ(a.bytes, 54U);
    EXPECT_EQ(a.offset % 64, 0U);
    EXPECT_EQ(a.offset, file->data_offset());
    std::string data(54, '\0');
    ASSERT_TRUE(
        file->read(a.offset, std::as_writable_bytes(std::span(data))).ok());
    EXPECT_EQ(data, std::string(54, 'x'));
    EXPECT_EQ(file->tensors()[1].offset, a.offset + 64);
    EXPECT_EQ(file->tensors()[1].dtype, DType::kF32);
    EXPECT_EQ(file->tensors()[2].format->kind, WeightKind::kGgufMxfp4);
    EXPECT_EQ(file->tensors()[2].bytes, 34U);
  }
}

TEST(Gguf, RefusesOtherFilesAndVersions) {
  EXPECT_NE(error_of(""), "");
  EXPECT_THAT(error_of(std::string(64, 'x')), HasSubstr("not a GGUF file"));
  EXPECT_THAT(error_of(GgufWriter(1)), HasSubstr("version 1"));
  EXPECT_THAT(error_of(GgufWriter(4)), HasSubstr("version 4"));
  EXPECT_THAT(error_of(GgufWriter(0x03000000)), HasSubstr("big-endian"));
}

TEST(Gguf, RefusesAFileCutAnywhere) {
  const std::string whole = tiny_llama_gguf().bytes();
  ASSERT_TRUE(parse(whole).ok());
  for (size_t bytes = 0; bytes < whole.size(); bytes += 5) {
    EXPECT_NE(error_of(whole.substr(0, bytes)), "") << bytes;
  }
  EXPECT_NE(error_of(whole.substr(0, whole.size() - 1)), "");
}

TEST(Gguf, RefusesCountsBeyondTheFile) {
  for (const uint64_t count :
       {uint64_t{100}, uint64_t{1} << 32, ~uint64_t{0}}) {
    EXPECT_THAT(error_of(GgufWriter().claim(count, 0)),
                HasSubstr("more than the file can hold"));
    EXPECT_THAT(error_of(GgufWriter().claim(0, count)),
                HasSubstr("more than the file can hold"));
    const std::string number = raw_bytes<uint64_t>(count);
    EXPECT_NE(error_of(GgufWriter().raw("s", 8, number)), "");
    for (const uint32_t type : {0U, 4U, 6U, 8U, 12U}) {
      EXPECT_THAT(error_of(GgufWriter().raw("a", 9, raw_bytes(type) + number)),
                  HasSubstr("'a'"));
    }
    // The length of a key, and of a string inside an array.
    EXPECT_NE(
        error_of("GGUF" + raw_bytes<uint32_t>(3) + raw_bytes<uint64_t>(0) +
                 raw_bytes<uint64_t>(1) + number + std::string(40, 'k')),
        "");
    EXPECT_NE(
        error_of(GgufWriter().raw(
            "a", 9, raw_bytes<uint32_t>(8) + raw_bytes<uint64_t>(1) + number)),
        "");
  }
}

TEST(Gguf, RefusesMetadataThatCannotBe) {
  EXPECT_THAT(error_of(GgufWriter().u32("a", 1).u32("a", 2)),
              HasSubstr("'a' twice"));
  EXPECT_THAT(error_of(GgufWriter().raw("a", 13, "12345678")),
              HasSubstr("has type 13"));
  EXPECT_THAT(error_of(GgufWriter().raw(
                  "a", 9, raw_bytes<uint32_t>(99) + raw_bytes<uint64_t>(0))),
              HasSubstr("type 99"));
  EXPECT_THAT(error_of(GgufWriter().raw(
                  "a",
                  9,
                  raw_bytes<uint32_t>(9) + raw_bytes<uint64_t>(1) +
                      raw_bytes<uint32_t>(4) + raw_bytes<uint64_t>(0))),
              HasSubstr("array of arrays"));
}

TEST(Gguf, RefusesAlignmentsThatAreNoPowerOfTwo) {
  for (const uint32_t alignment : {0U, 3U, 48U, 0xffffffffU}) {
    EXPECT_THAT(error_of(GgufWriter()
                             .u32("general.alignment", alignment)
                             .tensor("t", {1}, 0, f32s(1))),
                HasSubstr("general.alignment"));
  }
  EXPECT_THAT(error_of(GgufWriter().string("general.alignment", "32")),
              HasSubstr("general.alignment"));
  // A power of two that leaves no room for data.
  EXPECT_NE(error_of(GgufWriter()
                         .u32("general.alignment", 1U << 31)
                         .tensor("t", {1}, 0, f32s(1))),
            "");
}

TEST(Gguf, RefusesTensorsThatCannotBe) {
  const auto at =
      [](std::vector<uint64_t> shape, uint32_t type, uint64_t where) {
        GgufWriter writer;
        writer.tensor_at("t", std::move(shape), type, where);
        return error_of(writer.bytes() + std::string(256, 'd'));
      };
  EXPECT_EQ(at({64}, 0, 0), "");
  EXPECT_THAT(at({64}, 0, 32), HasSubstr("cut short"));
  EXPECT_THAT(at({64}, 0, 4), HasSubstr("alignment"));
  EXPECT_THAT(at({64}, 0, ~uint64_t{31}), HasSubstr("cut short"));
  EXPECT_THAT(at({0}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(at({1ULL << 32, 1ULL << 32}, 0, 0),
              HasSubstr("impossible shape"));
  EXPECT_THAT(at({1ULL << 62}, 0, 0), HasSubstr("more bytes than the file"));
  EXPECT_THAT(at({31}, 2, 0), HasSubstr("block of 32"));
  EXPECT_THAT(at({255}, 12, 0), HasSubstr("block of 256"));
  EXPECT_THAT(at({}, 0, 0), HasSubstr("0 dimensions"));
  EXPECT_THAT(at({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  GgufWriter overlap;
  overlap.tensor_at("a", {16}, 0, 0).tensor_at("b", {16}, 0, 32);
  EXPECT_THAT(error_of(overlap.bytes() + std::string(256, 'd')),
              HasSubstr("'a' and 'b' overlap"));
  GgufWriter twice;
  twice.tensor("t", {1}, 0, f32s(1)).tensor("t", {1}, 0, f32s(1));
  EXPECT_THAT(error_of(twice), HasSubstr("'t' twice"));
}

TEST(Gguf, KnowsBlockTypesAndKeepsTheRestNamed) {
  GgufWriter writer;
  writer.tensor("k", {256}, 14, std::string(210, 'k'));
  writer.tensor("iq", {32}, 20, std::string(18, 'k'));
  writer.tensor("new", {32}, 77, std::string(18, 'k'));
  const auto file = parse(writer.bytes());
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensors()[0].format->kind, WeightKind::kQ6_K);
  EXPECT_EQ(file->tensors()[1].format, std::nullopt);
  EXPECT_EQ(file->tensors()[1].type_name, "IQ4_NL");
  EXPECT_EQ(file->tensors()[2].type_name, "unknown");
  EXPECT_EQ(file->tensors()[2].bytes, 0U);
}

TEST(GgufVocab, HasWhatTheMetadataSays) {
  auto writer = tiny_llama_gguf();
  writer.boolean("tokenizer.ggml.add_bos_token", false)
      .boolean("tokenizer.ggml.add_space_prefix", true)
      .u32("tokenizer.ggml.unknown_token_id", 0)
      .u32("tokenizer.ggml.padding_token_id", 0xffffffff)
      .floats("tokenizer.ggml.scores", std::vector<float>(16, -1.5F))
      .raw("tokenizer.ggml.precompiled_charsmap",
           9,
           raw_bytes<uint32_t>(0) + raw_bytes<uint64_t>(3) + "abc")
      .string("tokenizer.chat_template", "{{ x }}");
  const auto file = parse(writer.bytes());
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto vocab = read_gguf_vocab(*file);
  ASSERT_TRUE(vocab.ok()) << vocab.status().message();
  EXPECT_EQ(vocab->model, "gpt2");
  EXPECT_EQ(vocab->pre, "smollm");
  EXPECT_EQ(vocab->tokens.size(), 16U);
  EXPECT_EQ(vocab->tokens[15], "t15");
  EXPECT_EQ(vocab->merges[1], "t 1");
  EXPECT_EQ(vocab->types.size(), 16U);
  EXPECT_EQ(vocab->scores.at(3), -1.5F);
  EXPECT_EQ(vocab->bos_id, 1U);
  EXPECT_EQ(vocab->eos_id, 2U);
  EXPECT_EQ(vocab->unk_id, 0U);
  EXPECT_EQ(vocab->pad_id, std::nullopt);
  EXPECT_EQ(vocab->eot_id, std::nullopt);
  EXPECT_EQ(vocab->add_bos, false);
  EXPECT_EQ(vocab->add_eos, std::nullopt);
  EXPECT_EQ(vocab->add_space_prefix, true);
  EXPECT_EQ(vocab->precompiled_charsmap, "abc");
  EXPECT_EQ(vocab->chat_template, "{{ x }}");
  // Nothing spare: the strings are held once, in memory of the right size.
  EXPECT_LT(vocab->tokens.memory_bytes(), 42U + 16 * 4 + 32);
}

TEST(GgufVocab, RefusesContradictions) {
  const auto error = [](const GgufWriter& writer) {
    const auto file = parse(writer.bytes());
    EXPECT_TRUE(file.ok()) << file.status().message();
    return read_gguf_vocab(*file).status().message();
  };
  EXPECT_THAT(error(GgufWriter()), HasSubstr("no tokenizer"));
  EXPECT_THAT(error(GgufWriter()
                        .string("tokenizer.ggml.model", "llama")
                        .strings("tokenizer.ggml.tokens", {"a", "b"})
                        .floats("tokenizer.ggml.scores", {1})),
              HasSubstr("1 elements for 2 tokens"));
  EXPECT_THAT(error(GgufWriter()
                        .string("tokenizer.ggml.model", "llama")
                        .i32s("tokenizer.ggml.tokens", {1, 2})),
              HasSubstr("tokenizer.ggml.tokens"));
  EXPECT_THAT(error(GgufWriter().u32("tokenizer.ggml.model", 1)),
              HasSubstr("tokenizer.ggml.model"));
}

}  // namespace
}  // namespace mlx_flash

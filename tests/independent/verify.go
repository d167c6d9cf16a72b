// Verifies what collect.py kept with Go's reference implementation of signed notes and transparency logs.
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var folder string

func read(name string) string {
	bytes, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		panic(err)
	}
	return string(bytes)
}

func hashes(lines []string) []tlog.Hash {
	var found []tlog.Hash
	for _, line := range lines {
		if line == "" {
			continue
		}
		bytes, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(bytes) != 32 {
			panic("not a hash: " + line)
		}
		var hash tlog.Hash
		copy(hash[:], bytes)
		found = append(found, hash)
	}
	return found
}

// open verifies a signed checkpoint and answers its size and root.
func open(text string) (int64, tlog.Hash, error) {
	verifier, err := note.NewVerifier(strings.TrimSpace(read("vkey")))
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		return 0, tlog.Hash{}, fmt.Errorf("the checkpoint of another log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	return size, hashes(lines[2:3])[0], err
}

// receipt verifies C2SP tlog-proof text for a leaf.
func receipt(text, leaf string) error {
	head, checkpoint, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return fmt.Errorf("not a tlog-proof")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	size, root, err := open(checkpoint)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(tlog.RecordProof(hashes(lines[2:])), size, root, index, tlog.RecordHash([]byte(leaf)))
}

func must(what string, err error) {
	if err != nil {
		fmt.Println("FAILED:", what, err)
		os.Exit(1)
	}
}

func mustNot(what string, err error) {
	if err == nil {
		fmt.Println("FAILED: accepted although altered:", what)
		os.Exit(1)
	}
}

func flip(text string, at int) string {
	bytes := []byte(text)
	bytes[at] ^= 1
	return string(bytes)
}

func main() {
	folder = os.Args[1]
	oldSize, oldRoot, err := open(read("checkpoint.old"))
	must("old checkpoint", err)
	size, root, err := open(read("checkpoint"))
	must("checkpoint", err)
	proof := tlog.TreeProof(hashes(strings.Split(read("consistency"), "\n")))
	must("consistency", tlog.CheckTree(proof, size, root, oldSize, oldRoot))
	mustNot("old root", tlog.CheckTree(proof, size, root, oldSize, tlog.RecordHash([]byte("other"))))
	for at := range proof {
		proof[at][0] ^= 1
		mustNot(fmt.Sprint("consistency proof, step ", at), tlog.CheckTree(proof, size, root, oldSize, oldRoot))
		proof[at][0] ^= 1
	}
	// Of the first signature: those of keys that are not known here are passed over.
	text := read("checkpoint")
	signature := strings.Index(text, "\n\n") + 2
	_, _, err = open(flip(text, signature+strings.Index(text[signature:], "\n")-10))
	mustNot("checkpoint signature", err)
	_, _, err = open(strings.Replace(read("checkpoint"), fmt.Sprintf("\n%d\n", size), fmt.Sprintf("\n%d\n", size+1), 1))
	mustNot("checkpoint size", err)
	count := 0
	for _, index := range strings.Fields(read("indices")) {
		text, leaf := read(index+".tlog-proof"), read(index+".leaf")
		must("receipt "+index, receipt(text, leaf))
		mustNot("leaf "+index, receipt(text, flip(leaf, 20)))
		number, _ := strconv.Atoi(index)
		mustNot("index "+index, receipt(strings.Replace(text, "index "+index, fmt.Sprintf("index %d", number+1), 1), leaf))
		if _, err := os.Stat(filepath.Join(folder, index+".inclusion")); err == nil {
			at, _ := strconv.ParseInt(index, 10, 64)
			record := tlog.RecordProof(hashes(strings.Split(read(index+".inclusion"), "\n")))
			must("inclusion "+index, tlog.CheckRecord(record, size, root, at, tlog.RecordHash([]byte(leaf))))
			record[0][0] ^= 1
			mustNot("proof "+index, tlog.CheckRecord(record, size, root, at, tlog.RecordHash([]byte(leaf))))
		}
		count++
	}
	if count == 0 {
		must("receipts", fmt.Errorf("nothing to verify"))
	}
	fmt.Printf("Go x/mod/sumdb: %d receipts, 2 checkpoints and their consistency verified; every altered one refused\n", count)
}

package encryption

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/nacl/secretbox"
)

var errShort = errors.New("the stored data was shorter than the required size")

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // it never fails
	return b
}

// gcm is AES-GCM: nonce, ciphertext and tag. What it is bound to is authenticated.
type gcm struct{ aead cipher.AEAD }

func newGCM(key []byte) (transformer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return gcm{aead}, err
}

func (g gcm) seal(plain, context []byte) ([]byte, error) {
	nonce := random(g.aead.NonceSize())
	return g.aead.Seal(nonce, nonce, plain, context), nil
}

func (g gcm) open(sealed, context []byte) ([]byte, bool, error) {
	n := g.aead.NonceSize()
	if len(sealed) < n {
		return nil, false, errShort
	}
	plain, err := g.aead.Open(nil, sealed[:n], sealed[n:], context)
	return plain, false, err
}

// cbc is AES-CBC with PKCS #7 padding: vector and ciphertext. It authenticates
// nothing; it is there for the data that others wrote with it.
type cbc struct{ block cipher.Block }

func newCBC(key []byte) (transformer, error) {
	block, err := aes.NewCipher(key)
	return cbc{block}, err
}

func (c cbc) seal(plain, _ []byte) ([]byte, error) {
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	out := append(random(aes.BlockSize), plain...)
	for range pad {
		out = append(out, byte(pad))
	}
	body := out[aes.BlockSize:]
	cipher.NewCBCEncrypter(c.block, out[:aes.BlockSize]).CryptBlocks(body, body)
	return out, nil
}

func (c cbc) open(sealed, _ []byte) ([]byte, bool, error) {
	if len(sealed) < aes.BlockSize {
		return nil, false, errShort
	}
	iv, body := sealed[:aes.BlockSize], sealed[aes.BlockSize:]
	if len(body)%aes.BlockSize != 0 {
		return nil, false, errors.New("the stored data is not a multiple of the block size")
	}
	if len(body) == 0 {
		return nil, false, errPKCS7
	}
	plain := make([]byte, len(body))
	cipher.NewCBCDecrypter(c.block, iv).CryptBlocks(plain, body)
	pad := int(plain[len(plain)-1])
	if pad == 0 || pad > len(plain) {
		return nil, false, errPKCS7
	}
	for _, b := range plain[len(plain)-pad:] {
		if int(b) != pad {
			return nil, false, errors.New("invalid padding on input")
		}
	}
	return plain[:len(plain)-pad], false, nil
}

var errPKCS7 = errors.New("invalid PKCS7 data (empty or not padded)")

// box is NaCl's secretbox: nonce and box.
type box struct{ key [32]byte }

const boxNonce = 24

func newBox(key []byte) (transformer, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("expected key size 32 for secretbox provider, got %v", len(key))
	}
	return box{[32]byte(key)}, nil
}

func (b box) seal(plain, _ []byte) ([]byte, error) {
	nonce := [boxNonce]byte(random(boxNonce))
	return secretbox.Seal(nonce[:], plain, &nonce, &b.key), nil
}

func (b box) open(sealed, _ []byte) ([]byte, bool, error) {
	if len(sealed) < secretbox.Overhead+boxNonce {
		return nil, false, errShort
	}
	nonce := [boxNonce]byte(sealed)
	plain, ok := secretbox.Open(nil, sealed[boxNonce:], &nonce, &b.key)
	if !ok {
		return nil, false, errors.New("output array was not large enough for encryption") // upstream's words for a wrong key
	}
	return plain, false, nil
}
